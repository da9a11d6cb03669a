//! Where each field of a document stands. Made only when there is a problem to report.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// The lines of a document's fields, from 1.
pub(super) struct Lines(Option<Node>);

struct Node {
    line: u32,
    children: Children,
}

enum Children {
    None,
    List(Vec<Node>),
    Fields(Vec<(String, u32, Node)>),
}

impl Lines {
    pub(super) fn of(document: &str) -> Self {
        Self(serde_saphyr::from_str_with_options(document, super::options()).ok())
    }

    /// Line of the first field.
    pub(super) fn first(&self) -> u32 {
        match &self.0 {
            Some(Node { children: Children::Fields(fields), line }) => {
                fields.first().map_or(*line, |(_, line, _)| *line)
            }
            Some(node) => node.line,
            None => 1,
        }
    }

    /// Path of the list item that stands at a line, `items[3].`; empty for the document itself.
    pub(super) fn holder(&self, line: u32) -> String {
        let Some(Node { children: Children::Fields(fields), .. }) = &self.0 else { return String::new() };
        let items = fields.iter().find_map(|(name, _, node)| match &node.children {
            Children::List(items) if name == "items" => Some(items),
            _ => None,
        });
        let place = items.and_then(|items| items.iter().position(|item| item.line == line));
        place.map_or_else(String::new, |place| format!("items[{place}]."))
    }

    /// Line of `spec.http[0].match`; of its nearest holder if there is no such field.
    pub(super) fn find(&self, path: &str) -> Option<u32> {
        let mut node = self.0.as_ref()?;
        let mut line = self.first();
        for part in
            path.replace("[\"", ".").replace("\"]", "").replace('[', ".[").split('.').filter(|part| !part.is_empty())
        {
            match (&node.children, part.strip_prefix('[').and_then(|index| index.strip_suffix(']'))) {
                (Children::List(items), Some(index)) => {
                    let Some(item) = index.parse().ok().and_then(|index: usize| items.get(index)) else { break };
                    (node, line) = (item, item.line);
                }
                (Children::Fields(fields), None) => {
                    let Some((_, at, value)) = fields.iter().find(|(name, ..)| name == part) else { break };
                    (node, line) = (value, *at);
                }
                _ => break,
            }
        }
        Some(line)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Children>::deserialize(deserializer)?;
        Ok(Self { line: u32::try_from(spanned.referenced.line()).unwrap_or(0), children: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Children {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Children;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("anything")
            }
            fn visit_unit<E>(self) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_none<E>(self) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_str<E>(self, _: &str) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_bytes<E>(self, _: &[u8]) -> Result<Children, E> {
                Ok(Children::None)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Children, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Children::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Children, A::Error> {
                let mut list = Vec::new();
                while let Some((name, value)) = fields.next_entry::<Spanned<String>, Node>()? {
                    list.push((name.value, u32::try_from(name.referenced.line()).unwrap_or(0), value));
                }
                Ok(Children::Fields(list))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
