//! What happens to a folder, as people and programs treat it.

use std::os::unix::fs::symlink;

use super::*;

struct Desk {
    folder: tempfile::TempDir,
    source: Folder,
    now: Instant,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Folder::new(folder.path(), "default").unwrap();
        Self { folder, source, now: Instant::now() }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // By renaming, as editors do: the file is never seen half-written, and its inode is new.
        let draft = path.with_extension("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, path).unwrap();
    }

    fn scan(&mut self) -> Batch {
        self.source.scan(self.now).unwrap_or_default()
    }
}

fn service(name: &str, port: u16) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: {port}\n")
}

/// `+name` set, `-name` deleted, `!name` refused.
fn told(batch: &Batch) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Upsert(object) => format!("+{}", object.meta.name),
        Change::Delete(key) => format!("-{}", key.name),
        Change::Reject(key) => format!("!{}", key.name),
        Change::Keys(source, _) => format!("#{}", source.address()),
        Change::MeshConfig { file, .. } => format!("={file}"),
    };
    batch.changes.iter().map(word).collect()
}

fn codes(batch: &Batch) -> Vec<Code> {
    batch.problems.iter().map(|problem| problem.code).collect()
}

#[test]
fn files_come_change_and_go() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &service("a", 1));
    desk.write("deep/b.yml", &format!("{}---\n{}", service("b", 1), service("c", 1)));
    desk.write("notes.txt", "not for the mesh");
    assert_eq!(told(&desk.scan()), ["+a", "+b", "+c"]);
    assert!(desk.source.scan(desk.now).is_none());
    desk.write("deep/b.yml", &service("b", 2));
    assert_eq!(told(&desk.scan()), ["-c", "+b"]);
    fs::remove_file(desk.folder.path().join("a.yaml")).unwrap();
    assert_eq!(told(&desk.scan()), ["-a"]);
}

#[test]
fn a_broken_document_takes_nothing_away() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &format!("{}---\n{}", service("a", 1), service("b", 1)));
    desk.scan();
    desk.write("a.yaml", &format!("{}---\nkind: [unclosed\n", service("a", 2)));
    let batch = desk.scan();
    assert_eq!(told(&batch), ["+a"]);
    assert_eq!(codes(&batch), [Code::NotYaml]);
    desk.write("a.yaml", &service("a", 2));
    let batch = desk.scan();
    assert!(told(&batch).contains(&"-b".to_owned()));
    assert!(batch.problems.is_empty());
}

#[test]
fn an_emptied_file_is_believed_only_after_a_while() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &service("a", 1));
    desk.scan();
    desk.write("a.yaml", "");
    assert_eq!(told(&desk.scan()), [""; 0]);
    assert!(desk.source.is_waiting());
    desk.now += EMPTY;
    assert_eq!(told(&desk.scan()), ["-a"]);
    assert!(!desk.source.is_waiting());
}

#[test]
fn the_same_object_twice_is_told_with_both_places() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &service("x", 1));
    desk.write("b.yaml", &format!("# one line more\n{}", service("x", 2)));
    let batch = desk.scan();
    assert_eq!(told(&batch), ["+x"]);
    assert_eq!(codes(&batch), [Code::DuplicateObject]);
    let problem = &batch.problems[0];
    assert_eq!(problem.origin.file, "b.yaml");
    assert!(problem.message.contains("a.yaml:1"), "{}", problem.message);
    // When the first goes, the second takes its place.
    fs::remove_file(desk.folder.path().join("a.yaml")).unwrap();
    let batch = desk.scan();
    assert_eq!(told(&batch), ["+x"]);
    assert!(batch.problems.is_empty());
}

#[test]
fn a_mounted_config_map_is_swapped_whole() {
    let mut desk = Desk::new();
    let path = |name: &str| desk.folder.path().join(name);
    fs::create_dir(path("..1")).unwrap();
    fs::write(path("..1/a.yaml"), service("a", 1)).unwrap();
    symlink("..1", path("..data")).unwrap();
    symlink("..data/a.yaml", path("a.yaml")).unwrap();
    fs::create_dir(path("..2")).unwrap();
    fs::write(path("..2/a.yaml"), service("a", 2)).unwrap();
    let (draft, data) = (path("..data_tmp"), path("..data"));
    assert_eq!(told(&desk.scan()), ["+a"]);
    symlink("..2", &draft).unwrap();
    fs::rename(draft, data).unwrap();
    assert_eq!(told(&desk.scan()), ["+a"]);
}

#[test]
fn links_in_a_circle_end() {
    let mut desk = Desk::new();
    desk.write("sub/a.yaml", &service("a", 1));
    symlink(desk.folder.path(), desk.folder.path().join("sub/up")).unwrap();
    assert_eq!(told(&desk.scan()), ["+a"]);
}

#[test]
fn huge_and_binary_files_disturb_nobody() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &service("a", 1));
    fs::write(desk.folder.path().join("binary.yaml"), [0xff, 0xfe, 0x00, 0x01]).unwrap();
    let huge = fs::File::create(desk.folder.path().join("huge.yaml")).unwrap();
    huge.set_len(MAX_FILE + 1).unwrap();
    let batch = desk.scan();
    assert_eq!(told(&batch), ["+a"]);
    assert_eq!(codes(&batch), [Code::NotYaml, Code::NotYaml]);
}
