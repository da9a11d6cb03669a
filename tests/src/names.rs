//! A name server that can fall silent, fail, and change its mind.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

/// What it does with queries.
#[derive(Clone, Debug)]
pub enum Says {
    /// Every name has these addresses, for a second.
    Addresses(Vec<Ipv4Addr>),
    /// Nothing.
    Nothing,
    /// SERVFAIL.
    Failure,
}

/// A name server at port 53 of an address, where resolvers look for it: this takes root.
pub struct NameServer {
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    /// Starts it.
    pub async fn start(ip: &str, says: Says) -> NameServer {
        let socket = UdpSocket::bind((ip, 53)).await.expect("port 53 is not to be had (this test needs root)");
        let server = NameServer { says: Arc::new(Mutex::new(says)), asked: Arc::default() };
        let (says, asked) = (server.says.clone(), server.asked.clone());
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                asked.fetch_add(1, Ordering::Relaxed);
                let answer = answer(&query[..length], &says.lock().unwrap());
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        server
    }

    /// From now on it says this.
    pub fn set(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    /// Waits until it was asked so many more times.
    pub async fn asked_again(&self, times: usize) {
        let wanted = self.asked.load(Ordering::Relaxed) + times;
        crate::wait::until("more queries", async || match self.asked.load(Ordering::Relaxed) {
            enough if enough >= wanted => Ok(()),
            few => Err((few, wanted)),
        })
        .await;
    }
}

/// RFC 1035, section 4: one question, and its answer in as many records of type A.
pub fn answer(query: &[u8], says: &Says) -> Option<Vec<u8>> {
    const OK: u8 = 0x80;
    const SERVFAIL: u8 = 0x82;
    // A name is labels behind their lengths, and an empty one.
    let name = query.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(12..12 + name + 5)?;
    let is_a = question[name + 2] == 1;
    let (code, records) = match says {
        Says::Nothing => return None,
        Says::Failure => (SERVFAIL, &[][..]),
        Says::Addresses(all) => (OK, if is_a { all.as_slice() } else { &[] }),
    };
    let mut text = query[..2].to_vec();
    text.extend([0x81, code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    text.extend(question);
    for record in records {
        // The name of the question, type A, class IN, valid for a second.
        text.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        text.extend(record.octets());
    }
    Some(text)
}
