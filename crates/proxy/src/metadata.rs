//! What filters tell each other of a request (Envoy's dynamic metadata): values under a filter's name and a key.

use std::sync::Arc;

use serde_json::Value;

/// What was told of one request. Empty, it costs nothing.
#[derive(Debug, Default)]
pub struct Metadata(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    filter: &'static str,
    key: Arc<str>,
    value: Arc<Value>,
}

impl Metadata {
    /// Tells something; what was told under the same key before is forgotten.
    pub fn tell(&mut self, filter: &'static str, key: &Arc<str>, value: Arc<Value>) {
        self.0.retain(|entry| entry.filter != filter || entry.key != *key);
        self.0.push(Entry { filter, key: Arc::clone(key), value });
    }

    /// The value at a path of names, if there is one.
    pub fn at(&self, filter: &str, path: &[String]) -> Option<&Value> {
        let (key, rest) = path.split_first()?;
        let entry = self.0.iter().find(|entry| entry.filter == filter && *entry.key == **key)?;
        rest.iter().try_fold(entry.value.as_ref(), |value, name| value.as_object()?.get(name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_found_by_their_path() {
        let mut metadata = Metadata::default();
        let at = |metadata: &Metadata, path: &str| {
            let path: Vec<String> = path.split('/').map(str::to_owned).collect();
            metadata.at("one", &path).cloned()
        };
        assert_eq!(at(&metadata, "k"), None);
        metadata.tell("one", &"k".into(), Arc::new(json!({"a": {"b": [1]}})));
        metadata.tell("two", &"k".into(), Arc::new(json!(2)));
        assert_eq!(at(&metadata, "k/a/b"), Some(json!([1])));
        assert_eq!(at(&metadata, "k/a/c"), None);
        assert_eq!(at(&metadata, "k/a/b/0"), None);
        metadata.tell("one", &"k".into(), Arc::new(json!(3)));
        assert_eq!(at(&metadata, "k"), Some(json!(3)));
        assert_eq!(at(&metadata, "other"), None);
        assert_eq!(metadata.at("one", &[]), None);
    }
}
