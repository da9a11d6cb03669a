//! Puts the entries of protobuf maps in the order of their keys. Equal messages become equal bytes, whatever order a hash
//! map gave them; lengths do not change, so it is done in place.

use prost_reflect::{Kind, MessageDescriptor};

/// Sorts all maps in an encoded message. Bytes that are not such a message are left as they are from there on.
pub(super) fn sort_maps(
    bytes: &mut [u8],
    descriptor: &MessageDescriptor,
    by_url: &dyn Fn(&str) -> Option<MessageDescriptor>,
) {
    if descriptor.full_name() == "google.protobuf.Any" {
        return sort_any(bytes, by_url);
    }
    // Runs of entries of one map: field number, then start and end of each entry and its key.
    let mut entries: Vec<(u32, usize, usize, Vec<u8>)> = Vec::new();
    let mut at = 0;
    while let Some(field) = Field::read(bytes, at) {
        at = field.end;
        let Some((start, end)) = field.content else { continue };
        let Some(descriptor) = descriptor.get_field(field.number) else { continue };
        let Kind::Message(inner) = descriptor.kind() else { continue };
        sort_maps(&mut bytes[start..end], &inner, by_url);
        if inner.is_map_entry() {
            let key = Field::read(&bytes[start..end], 0).filter(|key| key.number == 1).and_then(|key| key.content);
            let key = key.map(|(from, to)| bytes[start + from..start + to].to_vec()).unwrap_or_default();
            entries.push((field.number, field.start, field.end, key));
        }
    }
    let mut rest = entries.as_slice();
    while let Some((number, start, ..)) = rest.first() {
        let mut length = 1;
        while length < rest.len() && rest[length].0 == *number && rest[length].1 == rest[length - 1].2 {
            length += 1;
        }
        let (run, after) = rest.split_at(length);
        let mut sorted: Vec<&(u32, usize, usize, Vec<u8>)> = run.iter().collect();
        sorted.sort_by(|one, two| one.3.cmp(&two.3));
        let content: Vec<u8> = sorted.iter().flat_map(|(_, start, end, _)| bytes[*start..*end].to_vec()).collect();
        bytes[*start..*start + content.len()].copy_from_slice(&content);
        rest = after;
    }
}

fn sort_any(bytes: &mut [u8], by_url: &dyn Fn(&str) -> Option<MessageDescriptor>) {
    let (mut url, mut value, mut at) = (None, None, 0);
    while let Some(field) = Field::read(bytes, at) {
        at = field.end;
        match field.number {
            1 => url = field.content,
            2 => value = field.content,
            _ => {}
        }
    }
    let (Some((from, to)), Some((start, end))) = (url, value) else { return };
    let Some(descriptor) = std::str::from_utf8(&bytes[from..to]).ok().and_then(by_url) else { return };
    sort_maps(&mut bytes[start..end], &descriptor, by_url);
}

/// One field of the wire format.
struct Field {
    number: u32,
    start: usize,
    end: usize,
    /// Start and end of what a length-delimited field holds.
    content: Option<(usize, usize)>,
}

impl Field {
    fn read(bytes: &[u8], start: usize) -> Option<Field> {
        let (tag, at) = varint(bytes, start)?;
        let number = u32::try_from(tag >> 3).ok()?;
        let (end, content) = match tag & 7 {
            0 => (varint(bytes, at)?.1, None),
            1 => (at.checked_add(8)?, None),
            2 => {
                let (length, from) = varint(bytes, at)?;
                let to = from.checked_add(usize::try_from(length).ok()?)?;
                (to, Some((from, to)))
            }
            5 => (at.checked_add(4)?, None),
            _ => return None,
        };
        (end <= bytes.len()).then_some(Field { number, start, end, content })
    }
}

fn varint(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((value, at));
        }
    }
    None
}
