//! The bytes of questions and answers (RFC 1035, RFC 6891): pure.

use hickory_resolver::proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder};

use super::table::Found;

/// How long answers from the table are good for, in seconds (Istio's).
const TTL: u32 = 30;
/// Length of what every message begins with.
pub(super) const HEADER: usize = 12;
/// What anybody takes over UDP.
const PLAIN_UDP: u16 = 512;
/// The most that we say we take, and send, over UDP: what passes all networks in one piece.
const MOST_UDP: u16 = 1232;
/// Where the bit of a message that was cut off is.
const TRUNCATED: (usize, u8) = (2, 0b10);

/// A question.
#[derive(Debug)]
pub(super) struct Question {
    /// In lower case, without a dot at the end.
    pub(super) name: String,
    /// The name as it was written.
    written: Name,
    pub(super) kind: RecordType,
    head: Metadata,
    query: Query,
    edns: bool,
    /// Most bytes of an answer over UDP.
    payload: u16,
    /// Where the question ends in the message.
    end: usize,
}

/// A message that is no question to answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// To be left alone: whoever answers an answer may do so for ever.
    Silent,
    /// To be answered with this.
    Answer(Vec<u8>),
}

impl Question {
    /// Reads a message.
    pub(super) fn read(bytes: &[u8]) -> Result<Question, Unfit> {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(Header { metadata: head, counts }) = Header::read(&mut decoder) else { return Err(Unfit::Silent) };
        if head.message_type == MessageType::Response {
            return Err(Unfit::Silent);
        }
        if head.op_code != OpCode::Query {
            return Err(Unfit::Answer(failed(&head, None, ResponseCode::NotImp)));
        }
        let broken = || Unfit::Answer(failed(&head, None, ResponseCode::FormErr));
        // Nobody sends more than one, and there is no telling which is answered.
        if counts.queries != 1 {
            return Err(broken());
        }
        let query = Query::read(&mut decoder).map_err(|_| broken())?;
        let end = decoder.index();
        let whole = Message::from_vec(bytes).map_err(|_| broken())?;
        Ok(Question {
            name: query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase(),
            written: query.name().clone(),
            kind: query.query_type(),
            head,
            query,
            edns: whole.edns.is_some(),
            payload: whole.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MOST_UDP)),
            end,
        })
    }

    /// Whether the table may have something for it: the addresses of a name.
    pub(super) fn is_for_addresses(&self) -> bool {
        self.query.query_class() == DNSClass::IN && matches!(self.kind, RecordType::A | RecordType::AAAA)
    }

    /// The answer of the table. The order of several addresses is for `shuffle` to say.
    pub(super) fn answer(&self, found: &Found<'_>, over_udp: bool, shuffle: impl FnOnce(&mut [Record])) -> Vec<u8> {
        let mut answer = self.response(ResponseCode::NoError);
        answer.metadata.authoritative = true;
        let meant = found.meant.and_then(|name| Name::from_ascii(format!("{name}.")).ok());
        let of = |data| Record::from_rdata(meant.clone().unwrap_or_else(|| self.written.clone()), TTL, data);
        let mut records: Vec<Record> = match self.kind {
            RecordType::A => found.entry.four.iter().map(|address| of(RData::A(A(*address)))).collect(),
            _ => found.entry.six.iter().map(|address| of(RData::AAAA(AAAA(*address)))).collect(),
        };
        shuffle(&mut records);
        // A name that is known without such an address is no reason to ask others: the answer is empty.
        if let (Some(meant), false) = (&meant, records.is_empty()) {
            let alias = RData::CNAME(CNAME(meant.clone()));
            answer.add_answer(Record::from_rdata(self.written.clone(), TTL, alias));
        }
        answer.add_answers(records);
        let bytes = encode(&answer);
        if !over_udp || bytes.len() <= usize::from(self.payload) {
            return bytes;
        }
        encode(&answer.truncate())
    }

    /// The answer that there is no answer.
    pub(super) fn failure(&self) -> Vec<u8> {
        failed(&self.head, Some(self), ResponseCode::ServFail)
    }

    /// An answer of a name server, as the one who asked may be told it: with the number of the question, and no longer than
    /// what is taken.
    pub(super) fn relayed(&self, mut answer: Vec<u8>, over_udp: bool) -> Vec<u8> {
        answer[..2].copy_from_slice(&self.head.id.to_be_bytes());
        if !over_udp || answer.len() <= usize::from(self.payload) {
            return answer;
        }
        let code = ResponseCode::from_low(answer[3] & 0x0f);
        let mut cut = self.response(code);
        cut.metadata.truncation = true;
        encode(&cut)
    }

    /// The question as it is sent on, under a number of ours.
    pub(super) fn sent_on(&self, bytes: &[u8], id: u16) -> Vec<u8> {
        let mut sent = bytes.to_vec();
        sent[..2].copy_from_slice(&id.to_be_bytes());
        sent
    }

    /// Whether a message is the answer to this question as it was sent on: its number and the question in it are the same. A
    /// refusal may be without the question.
    pub(super) fn is_answered_by(&self, sent: &[u8], answer: &[u8]) -> bool {
        if answer.len() < HEADER || answer[..2] != sent[..2] || answer[2] & 0x80 == 0 || answer[2] & 0x78 != 0 {
            return false;
        }
        match u16::from_be_bytes([answer[4], answer[5]]) {
            1 => answer.get(HEADER..self.end).is_some_and(|there| there.eq_ignore_ascii_case(&sent[HEADER..self.end])),
            0 => answer[3] & 0x0f != 0,
            _ => false,
        }
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut answer = Message::response(self.head.id, OpCode::Query);
        answer.metadata = Metadata::response_from_request(&self.head);
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = code;
        answer.add_query(self.query.clone());
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MOST_UDP);
            answer.set_edns(edns);
        }
        answer
    }
}

/// Whether an answer was cut off.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(TRUNCATED.0).is_some_and(|byte| byte & TRUNCATED.1 != 0)
}

/// Whether a name server has failed where another may not: SERVFAIL, NOTIMP, REFUSED.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|byte| matches!(byte & 0x0f, 2 | 4 | 5))
}

fn failed(head: &Metadata, question: Option<&Question>, code: ResponseCode) -> Vec<u8> {
    if let Some(question) = question {
        return encode(&question.response(code));
    }
    let mut answer = Message::response(head.id, head.op_code);
    answer.metadata = Metadata::response_from_request(head);
    answer.metadata.response_code = code;
    encode(&answer)
}

/// A message that we made ourselves; one that cannot be written, which is none we know of, is as good as none.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}
