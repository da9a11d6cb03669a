//! The runtime's network configuration with our plug-in at its end, and without it again. Pure: text goes in, what to write comes
//! out. Our entry carries the text that was there before, so that taking it out gives back the very bytes.

use serde_json::{Map, Value, json};

use super::NAME;

/// Field of our entry: the text of the file before us.
const BEFORE: &str = "before";
/// Field of our entry: name of the file before us, if it had another.
const FROM: &str = "from";

/// What to do with a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// File to write.
    pub file: String,
    /// Its text.
    pub text: String,
    /// File to remove after that.
    pub remove: Option<String>,
}

/// Which file the runtime goes by: the first by name that is a configuration (CNI `libcni.ConfFiles`).
pub fn chosen(names: &[String]) -> Option<&str> {
    let is_one = |name: &&str| {
        let ending = name.rsplit_once('.').map(|(_, ending)| ending);
        matches!(ending, Some("conf" | "conflist" | "json")) && !name.starts_with('.')
    };
    names.iter().map(String::as_str).filter(is_one).min()
}

/// Puts our entry at the end of the list. Nothing is to be done if it is there as it should be.
///
/// # Errors
/// The file is no configuration: why, to complete "FILE …".
pub fn add(file: &str, text: &str, entry: &Value) -> Result<Option<Change>, String> {
    let (mut list, is_single) = read(file, text)?;
    let plugins = plugins(&mut list)?;
    let mut entry = entry.clone();
    let place = plugins.iter().position(is_ours);
    match place.and_then(|place| plugins.get(place)) {
        Some(old) => {
            for field in [BEFORE, FROM] {
                if let Some(value) = old.get(field) {
                    entry[field] = value.clone();
                }
            }
        }
        None => {
            entry[BEFORE] = Value::from(text);
            if is_single {
                entry[FROM] = Value::from(file);
            }
        }
    }
    match place {
        Some(place) if plugins.get(place) == Some(&entry) => return Ok(None),
        Some(place) => plugins[place] = entry,
        None => plugins.push(entry),
    }
    let name = if is_single { listed(file) } else { file.to_owned() };
    let remove = is_single.then(|| file.to_owned());
    Ok(Some(Change { file: name, text: written(&list), remove }))
}

/// Takes our entry out. Nothing is to be done if it is not there.
///
/// # Errors
/// The file is no configuration.
pub fn remove(file: &str, text: &str) -> Result<Option<Change>, String> {
    let (mut list, _) = read(file, text)?;
    let plugins = plugins(&mut list)?;
    let Some(place) = plugins.iter().position(is_ours) else { return Ok(None) };
    let ours = plugins.remove(place);
    let from = ours[FROM].as_str().unwrap_or(file);
    // What others have changed meanwhile counts over the bytes of before.
    let same = |before: &&str| read(from, before).is_ok_and(|(before, _)| before == list);
    Ok(Some(match ours[BEFORE].as_str().filter(same) {
        Some(before) => {
            Change { file: from.to_owned(), text: before.to_owned(), remove: (from != file).then(|| file.to_owned()) }
        }
        None => Change { file: file.to_owned(), text: written(&list), remove: None },
    }))
}

/// Whether our entry is in it.
pub fn has_entry(file: &str, text: &str) -> bool {
    read(file, text).is_ok_and(|(list, _)| list["plugins"].as_array().is_some_and(|all| all.iter().any(is_ours)))
}

/// Name of the list that a single configuration becomes.
pub fn listed(file: &str) -> String {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    format!("{stem}.conflist")
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == NAME
}

/// The list; a single configuration becomes a list of one, as runtimes do it.
fn read(file: &str, text: &str) -> Result<(Value, bool), String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    if file.ends_with(".conflist") {
        return Ok((value, false));
    }
    if !value["type"].is_string() {
        return Err("names no type of plug-in".to_owned());
    }
    let mut list = Map::new();
    for field in ["cniVersion", "name"] {
        list.extend(value.get(field).map(|value| (field.to_owned(), value.clone())));
    }
    list.insert("plugins".to_owned(), json!([value]));
    Ok((Value::Object(list), true))
}

fn plugins(list: &mut Value) -> Result<&mut Vec<Value>, String> {
    match list.get_mut("plugins").and_then(Value::as_array_mut) {
        Some(plugins) if plugins.iter().any(|plugin| !is_ours(plugin)) => Ok(plugins),
        _ => Err("has no list of plug-ins that ours could follow".to_owned()),
    }
}

fn written(list: &Value) -> String {
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"k8s\",\n   \"plugins\": [{\"type\": \"ptp\"}, {\"type\": \"portmap\"}]}";
    const SINGLE: &str = "{ \"name\": \"one\", \"cniVersion\": \"0.3.1\", \"type\": \"bridge\", \"mtu\": 1400 }";

    fn entry() -> Value {
        json!({"type": NAME, "excludeNamespaces": ["kube-system"]})
    }

    fn types(text: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(text).unwrap();
        let all = list["plugins"].as_array().unwrap().iter();
        all.map(|one| one["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn ours_comes_last_once_and_leaves_no_trace() {
        let first = add("10-a.conflist", LIST, &entry()).unwrap().unwrap();
        assert_eq!((first.file.as_str(), &first.remove), ("10-a.conflist", &None));
        assert_eq!(types(&first.text), ["ptp", "portmap", NAME]);
        assert!(has_entry("10-a.conflist", &first.text) && !has_entry("10-a.conflist", LIST));
        assert_eq!(add("10-a.conflist", &first.text, &entry()).unwrap(), None);
        let gone = remove("10-a.conflist", &first.text).unwrap().unwrap();
        assert_eq!(gone, Change { file: "10-a.conflist".into(), text: LIST.into(), remove: None });
        assert_eq!(remove("10-a.conflist", LIST).unwrap(), None);
    }

    #[test]
    fn other_settings_replace_ours_and_keep_what_was_before() {
        let first = add("a.conflist", LIST, &entry()).unwrap().unwrap();
        let other = json!({"type": NAME, "excludeNamespaces": ["kube-system", "x"]});
        let second = add("a.conflist", &first.text, &other).unwrap().unwrap();
        assert_eq!(types(&second.text), ["ptp", "portmap", NAME]);
        assert_eq!(remove("a.conflist", &second.text).unwrap().unwrap().text, LIST);
    }

    #[test]
    fn what_others_changed_meanwhile_stays() {
        let first = add("a.conflist", LIST, &entry()).unwrap().unwrap();
        let changed = first.text.replacen("\"portmap\"", "\"bandwidth\"", 1);
        assert_ne!(changed, first.text);
        let gone = remove("a.conflist", &changed).unwrap().unwrap();
        assert_eq!(types(&gone.text), ["ptp", "bandwidth"]);
    }

    #[test]
    fn a_single_configuration_becomes_a_list_and_comes_back() {
        let first = add("87-one.conf", SINGLE, &entry()).unwrap().unwrap();
        assert_eq!((first.file.as_str(), first.remove.as_deref()), ("87-one.conflist", Some("87-one.conf")));
        assert_eq!(types(&first.text), ["bridge", NAME]);
        let list: Value = serde_json::from_str(&first.text).unwrap();
        assert_eq!((&list["name"], &list["plugins"][0]["mtu"]), (&json!("one"), &json!(1400)));
        assert_eq!(add("87-one.conflist", &first.text, &entry()).unwrap(), None);
        let gone = remove("87-one.conflist", &first.text).unwrap().unwrap();
        let back = Change { file: "87-one.conf".into(), text: SINGLE.into(), remove: Some("87-one.conflist".into()) };
        assert_eq!(gone, back);
    }

    #[test]
    fn what_is_no_configuration_is_told() {
        for (file, text, wrong) in [
            ("a.conflist", "{", "not JSON"),
            ("a.conflist", "{\"plugins\": []}", "no list of plug-ins"),
            ("a.conflist", "[]", "no list of plug-ins"),
            ("a.conf", "{\"name\": \"x\"}", "names no type"),
        ] {
            let told = add(file, text, &entry()).unwrap_err();
            assert!(told.contains(wrong), "{told}");
            assert!(remove(file, text).is_err());
        }
    }

    #[test]
    fn the_first_file_by_name_counts() {
        let names = ["99-b.conf", "README", "10-a.conflist", ".10-a.conflist.new", "05-kubeconfig"];
        assert_eq!(chosen(&names.map(str::to_owned)), Some("10-a.conflist"));
        assert_eq!(chosen(&["x.txt".to_owned()]), None);
    }
}
