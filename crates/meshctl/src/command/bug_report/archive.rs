//! A tar archive in memory (POSIX.1-1988, `ustar`): plain files, which everybody can unpack.

/// Bytes of a block: headers are one, files are padded to whole ones.
const BLOCK: usize = 512;
/// Longest names: of the file, and of the folders before it.
const NAME: usize = 100;
const PREFIX: usize = 155;

/// An archive that files are added to.
pub(super) struct Archive {
    bytes: Vec<u8>,
    time: i64,
}

impl Archive {
    /// An empty one; `time` is when its files were written, seconds since 1970.
    pub(super) fn new(time: i64) -> Archive {
        Archive { bytes: Vec::new(), time }
    }

    /// Adds a file. A path that is too long is cut at its front.
    pub(super) fn add(&mut self, path: &str, content: &[u8]) {
        let (prefix, name) = parts(path);
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, format!("{:011o}\0", self.time.max(0)).as_bytes());
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        put(345, prefix.as_bytes());
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The whole archive: two empty blocks end it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// A path as the header holds it: folders, and the rest.
fn parts(path: &str) -> (&str, &str) {
    if path.len() <= NAME {
        return ("", path);
    }
    let fits = |(at, _): &(usize, &str)| *at <= PREFIX && path.len() - at - 1 <= NAME;
    match path.match_indices('/').find(fits) {
        Some((at, _)) => (&path[..at], &path[at + 1..]),
        None => {
            let start = (path.len() - NAME..path.len()).find(|at| path.is_char_boundary(*at)).unwrap_or(path.len());
            ("", &path[start..])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_reads_what_was_written() {
        let long = format!("{}/{}.log", "folder".repeat(20), "pod".repeat(20));
        let mut archive = Archive::new(1_700_000_000);
        archive.add("a/b.txt", b"one\n");
        archive.add(&long, &[b'x'; 1000]);
        archive.add("empty", b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut tar =
            Command::new("tar").args(["-tvf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 3, "{listed}");
        assert!(
            lines[0].ends_with("a/b.txt")
                && lines[0].contains(" 4 ")
                && lines[1].ends_with(&long)
                && lines[1].contains(" 1000 ")
        );
    }

    #[test]
    fn long_paths_keep_their_ends() {
        assert_eq!(parts("a/b"), ("", "a/b"));
        let path = format!("{}/b", "a".repeat(120));
        assert_eq!(parts(&path), (&path[..120], "b"));
        let name = "é".repeat(120);
        assert!(name.ends_with(parts(&name).1) && parts(&name).1.len() <= NAME);
    }
}
