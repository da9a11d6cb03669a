//! A folder of YAML and JSON files, followed as it changes.
//!
//! What is held of a file changes only with what can be read of it: an unreadable document keeps all objects that the file
//! gave before, so that a half-written file takes nothing away. A ConfigMap mounted by Kubernetes (`..data` links) is one
//! folder like any other.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use api::decode;
use api::object::ObjectKey;
use api::problem::{Code, ObjectRef, Origin, Problem, Severity};
use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecursiveMode, Watcher};
use plan::Change;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Batch;

/// Files larger than this are not read: no object is that large (the API server's limit is 1.5 MiB an object).
const MAX_FILE: u64 = 32 << 20;
/// A burst of events is over when it was quiet for so long.
const QUIET: Duration = Duration::from_millis(25);
/// The same where what happened last left a file whole.
const SETTLED: Duration = Duration::from_millis(2);
/// A burst is looked at after so long at the latest.
const BURST: Duration = Duration::from_millis(120);
/// An emptied file is believed only after so long: many editors truncate before they write.
const EMPTY: Duration = Duration::from_millis(150);
/// Without any event the folder is looked at again after so long: not all file systems tell.
const RESCAN: Duration = Duration::from_secs(2);

/// The folder, as last read.
pub struct Folder {
    root: PathBuf,
    namespace: String,
    files: BTreeMap<PathBuf, File>,
    /// Which file gives an object.
    owners: BTreeMap<ObjectKey, PathBuf>,
    /// Some object is in several files.
    shared: bool,
}

#[derive(Default)]
struct File {
    stamp: Stamp,
    objects: BTreeMap<ObjectKey, Held>,
    problems: Vec<Problem>,
    /// When the file was first seen to be empty.
    emptied: Option<Instant>,
}

struct Held {
    digest: u64,
    line: u32,
    /// Kept only until it has been told.
    object: Option<Box<api::object::Object>>,
}

/// Tells whether a file may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Folder {
    /// A folder that has not been read.
    ///
    /// # Errors
    /// It is not a folder.
    pub fn new(root: &Path, namespace: &str) -> Result<Self> {
        let metadata = fs::metadata(root)
            .with_context(|| format!("the configuration folder {} cannot be read", root.display()))?;
        anyhow::ensure!(metadata.is_dir(), "{} is not a folder", root.display());
        Ok(Self {
            root: root.to_owned(),
            namespace: namespace.to_owned(),
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            shared: false,
        })
    }

    /// Reads what has changed. `None` if nothing has.
    pub fn scan(&mut self, now: Instant) -> Option<Batch> {
        let mut found = BTreeMap::new();
        let mut unreadable = Vec::new();
        walk(&self.root, &mut found, &mut HashSet::new(), &mut unreadable);
        let mut changed: Vec<PathBuf> = Vec::new();
        for (path, stamp) in &found {
            let known = self.files.get(path);
            if known.is_none_or(|file| file.stamp != *stamp || file.emptied.is_some()) {
                changed.push(path.clone());
            }
        }
        // A folder that cannot be listed just now has not lost its files.
        let hidden = |path: &Path| unreadable.iter().any(|(folder, _): &(PathBuf, io::Error)| path.starts_with(folder));
        let gone: Vec<PathBuf> =
            self.files.keys().filter(|path| !found.contains_key(*path) && !hidden(path)).cloned().collect();
        if changed.is_empty() && gone.is_empty() {
            return None;
        }
        let mut rejected = Vec::new();
        let mut altered = !gone.is_empty();
        for path in &gone {
            self.files.remove(path);
        }
        for path in changed {
            altered |= self.read(&path, found[&path], now, &mut rejected);
        }
        altered.then(|| self.tell(rejected))
    }

    /// Reads again the files of these paths, if that is enough to know what has changed: each is a known file, and every
    /// object in it is in no other file. Else everything is looked at.
    pub fn scan_paths(&mut self, paths: &BTreeSet<PathBuf>, now: Instant) -> Option<Batch> {
        let mut found = Vec::new();
        for path in paths {
            // Files of the folder itself or of plain folders in it: what is behind links or dots needs the whole look.
            let plain = path
                .strip_prefix(&self.root)
                .is_ok_and(|rest| !rest.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".")));
            match fs::symlink_metadata(path) {
                Ok(metadata) if plain && metadata.is_file() && !is_manifest(path) => {}
                Ok(metadata) if plain && metadata.is_file() && self.files.contains_key(path) => {
                    found.push((path, stamp(&metadata)));
                }
                // A temporary file that was renamed meanwhile.
                Err(error) if plain && error.kind() == io::ErrorKind::NotFound && !self.files.contains_key(path) => {}
                _ => return self.scan(now),
            }
        }
        found.retain(|(path, stamp)| {
            self.files.get(*path).is_none_or(|file| file.stamp != *stamp || file.emptied.is_some())
        });
        let keys = |folder: &Self, path: &PathBuf| -> BTreeSet<ObjectKey> {
            folder.files.get(path).map(|file| file.objects.keys().cloned().collect()).unwrap_or_default()
        };
        let before: Vec<_> = found.iter().map(|(path, _)| keys(self, path)).collect();
        let mut rejected = Vec::new();
        let mut altered = false;
        for (path, stamp) in &found {
            altered |= self.read(path, *stamp, now, &mut rejected);
        }
        if !altered {
            return None;
        }
        // Who gives an object is as before for all others only where nobody else gives those of these files.
        let mine = |key: &ObjectKey, path: &Path| self.owners.get(key).is_none_or(|owner| owner == path);
        let alone = !self.shared
            && found.iter().zip(&before).all(|((path, _), before)| {
                let now = &self.files[*path].objects;
                now.keys().all(|key| mine(key, path)) && before.iter().all(|key| mine(key, path))
            });
        if !alone || found.len() > 1 {
            return Some(self.tell(rejected));
        }
        let mut batch = Batch::default();
        for ((path, _), before) in found.iter().zip(before) {
            let Some(file) = self.files.get_mut(*path) else { continue };
            for key in before.iter().filter(|key| !file.objects.contains_key(*key)) {
                batch.changes.push(Change::Delete(key.clone()));
                self.owners.remove(key);
            }
            for (key, held) in &mut file.objects {
                self.owners.insert(key.clone(), (*path).clone());
                batch.changes.extend(held.object.take().map(Change::Upsert));
            }
        }
        batch.problems = self.files.values().flat_map(|file| file.problems.iter().cloned()).collect();
        batch.changes.extend(rejected.into_iter().map(Change::Reject));
        Some(batch)
    }

    /// Whether an emptied file waits to be believed.
    pub fn is_waiting(&self) -> bool {
        self.files.values().any(|file| file.emptied.is_some())
    }

    /// Reads a file. Returns whether what is held of it changed.
    fn read(&mut self, path: &Path, stamp: Stamp, now: Instant, rejected: &mut Vec<ObjectKey>) -> bool {
        let shown = self.shown(path);
        let file = self.files.entry(path.to_owned()).or_default();
        if stamp.size == 0 && !file.objects.is_empty() {
            let since = *file.emptied.get_or_insert(now);
            if now - since < EMPTY {
                return false;
            }
        }
        file.emptied = None;
        file.stamp = stamp;
        let problem = |code, message| Problem {
            object: ObjectRef::default(),
            origin: Origin { file: shown.clone(), line: 0 },
            field: String::new(),
            code,
            severity: Severity::Error,
            message,
        };
        if stamp.size > MAX_FILE {
            file.problems = vec![problem(
                Code::NotYaml,
                format!("The file has {} bytes; more than {MAX_FILE} are not read. Split it.", stamp.size),
            )];
            return true;
        }
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) => {
                // Read again with the next event or rescan.
                file.stamp = Stamp::default();
                file.problems = vec![problem(Code::NotYaml, format!("The file cannot be read: {error}."))];
                return true;
            }
        };
        let decoded = decode::documents(&text, &shown, &self.namespace);
        let broken = decoded.problems.iter().any(|problem| problem.code == Code::NotYaml);
        let mut before = std::mem::take(&mut file.objects);
        file.problems = decoded.problems;
        for object in decoded.objects {
            let key = object.key();
            if let Some(first) = file.objects.get(&key) {
                file.problems.push(duplicate(&key, object.origin.clone(), &format!("{shown}:{}", first.line)));
                continue;
            }
            let held = Held { digest: object.digest, line: object.origin.line, object: Some(Box::new(object)) };
            file.objects.insert(key, held);
        }
        for key in decoded.rejected {
            if let Some(held) = before.remove(&key) {
                file.objects.entry(key.clone()).or_insert(held);
            }
            rejected.push(key);
        }
        if broken {
            for (key, held) in before {
                file.objects.entry(key).or_insert(held);
            }
        }
        true
    }

    /// Turns what the files hold into changes against what was told before.
    fn tell(&mut self, rejected: Vec<ObjectKey>) -> Batch {
        let mut batch = Batch::default();
        let mut owners: BTreeMap<ObjectKey, PathBuf> = BTreeMap::new();
        let mut shared = false;
        for (path, file) in &self.files {
            batch.problems.extend(file.problems.iter().cloned());
            for (key, held) in &file.objects {
                if let Some(first) = owners.get(key) {
                    shared = true;
                    let origin = Origin { file: self.shown(path), line: held.line };
                    let line = self.files[first].objects.get(key).map_or(0, |held| held.line);
                    batch.problems.push(duplicate(key, origin, &format!("{}:{line}", self.shown(first))));
                } else {
                    owners.insert(key.clone(), path.clone());
                }
            }
        }
        for key in self.owners.keys().filter(|key| !owners.contains_key(*key)) {
            batch.changes.push(Change::Delete(key.clone()));
        }
        for (key, path) in &owners {
            let moved = self.owners.get(key) != Some(path);
            let Some(held) = self.files.get_mut(path).and_then(|file| file.objects.get_mut(key)) else { continue };
            match held.object.take() {
                Some(object) => batch.changes.push(Change::Upsert(object)),
                // The object comes from another file now, whose text was told before and not kept: read it again.
                None if moved => {
                    if let Some(object) = again(path, key, &self.namespace, held.digest) {
                        batch.changes.push(Change::Upsert(object));
                    }
                }
                None => {}
            }
        }
        // Objects that lose to an older file of the same key are not kept in memory.
        for file in self.files.values_mut() {
            file.objects.values_mut().for_each(|held| held.object = None);
        }
        batch.changes.extend(rejected.into_iter().map(Change::Reject));
        self.owners = owners;
        self.shared = shared;
        batch
    }

    /// The path as a user would write it: relative to the folder.
    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}

fn again(path: &Path, key: &ObjectKey, namespace: &str, digest: u64) -> Option<Box<api::object::Object>> {
    let text = fs::read(path).ok()?;
    let decoded = decode::documents(&text, &path.display().to_string(), namespace);
    decoded.objects.into_iter().find(|object| object.key() == *key && object.digest == digest).map(Box::new)
}

fn duplicate(key: &ObjectKey, origin: Origin, first: &str) -> Problem {
    Problem {
        object: key.reference(),
        message: format!("The same object stands in {first}, which is in effect; this one is not. Remove one of them."),
        origin,
        field: String::new(),
        code: Code::DuplicateObject,
        severity: Severity::Error,
    }
}

/// Collects the files to read. Links are followed; a folder reached twice is read once.
fn walk(
    folder: &Path,
    found: &mut BTreeMap<PathBuf, Stamp>,
    seen: &mut HashSet<(u64, u64)>,
    unreadable: &mut Vec<(PathBuf, io::Error)>,
) {
    let listed = fs::metadata(folder).and_then(|metadata| Ok((metadata, fs::read_dir(folder)?)));
    let (metadata, entries) = match listed {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return unreadable.push((folder.to_owned(), error)),
    };
    if !seen.insert((metadata.dev(), metadata.ino())) {
        return;
    }
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        // `..data` and what it points at: Kubernetes' own way to swap a mounted ConfigMap. Dot files: editors'.
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            walk(&path, found, seen, unreadable);
        } else if metadata.is_file() && is_manifest(&path) {
            found.insert(path, stamp(&metadata));
        }
    }
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().and_then(OsStr::to_str).is_some_and(|ending| matches!(ending, "yaml" | "yml" | "json"))
}

/// Follows the folder and sends what changes, the first reading at once, until the receiver is gone.
pub async fn run(mut folder: Folder, batches: mpsc::Sender<Batch>) {
    let (events, mut heard) = mpsc::channel(256);
    let lost = Arc::new(AtomicBool::new(false));
    let _watcher = watch(&folder.root, events, lost.clone());
    if batches.send(folder.scan(Instant::now()).unwrap_or_default()).await.is_err() {
        return;
    }
    loop {
        let pause = if folder.is_waiting() { EMPTY } else { RESCAN };
        let mut paths = BTreeSet::new();
        let mut complete = true;
        if let Ok(Some(first)) = tokio::time::timeout(pause, heard.recv()).await {
            let burst = Instant::now() + BURST;
            let mut next = Some(first);
            while let Some(event) = next {
                complete &= event.path.is_some();
                paths.extend(event.path);
                // A file that was renamed to its place, or closed after writing, is whole.
                let quiet = if event.whole { SETTLED } else { QUIET };
                next = match Instant::now() < burst {
                    true => tokio::time::timeout(quiet, heard.recv()).await.ok().flatten(),
                    false => None,
                };
            }
        } else {
            complete = false;
        }
        let complete = complete && !lost.swap(false, Ordering::Relaxed);
        let scanned = tokio::task::block_in_place(|| match complete {
            true => folder.scan_paths(&paths, Instant::now()),
            false => folder.scan(Instant::now()),
        });
        if let Some(batch) = scanned
            && batches.send(batch).await.is_err()
        {
            return;
        }
        if batches.is_closed() {
            return;
        }
    }
}

/// Something has happened below the folder.
struct Heard {
    /// To one file; none if more may have happened than is told.
    path: Option<PathBuf>,
    /// The file is complete.
    whole: bool,
}

/// Tells when something below the folder changes. Where that cannot be had, the rescan is all there is.
fn watch(root: &Path, events: mpsc::Sender<Heard>, lost: Arc<AtomicBool>) -> Option<notify::RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        let (path, whole) = match event {
            // Our own reading is an event too.
            Ok(event) if event.kind.is_access() && !is_close_after_writing(&event.kind) => return,
            Ok(mut event) => {
                let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
                let whole = is_close_after_writing(&event.kind) || event.kind == renamed;
                (event.paths.pop().filter(|_| event.paths.is_empty() && !event.need_rescan()), whole)
            }
            Err(_) => (None, false),
        };
        if events.try_send(Heard { path, whole }).is_err() {
            lost.store(true, Ordering::Relaxed);
        }
    };
    let started = notify::recommended_watcher(tell)
        .and_then(|mut watcher| watcher.watch(root, RecursiveMode::Recursive).map(|()| watcher));
    started.inspect_err(|error| tracing::warn!(%error, "changes of the folder are not told by the system; it is read every {RESCAN:?}")).ok()
}

fn is_close_after_writing(kind: &EventKind) -> bool {
    *kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests;
