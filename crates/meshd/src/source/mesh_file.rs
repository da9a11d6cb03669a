//! The file of the mesh-wide settings (`--mesh-config`, Istio's `--meshConfig`), followed as it changes.

use std::path::PathBuf;
use std::time::Duration;

use plan::Change;
use tokio::sync::mpsc;

/// The file is looked at so often. It is small, and not all file systems tell of changes.
const LOOK: Duration = Duration::from_millis(200);

/// Tells each text of the file that is other than `known`, once it was the same for two looks: many editors empty a file before
/// they write it. A file that is gone or cannot be read changes nothing. Runs until nobody listens.
pub async fn follow(file: PathBuf, mut known: String, changes: mpsc::Sender<Change>) {
    let (mut before, mut is_away) = (None, false);
    loop {
        tokio::time::sleep(LOOK).await;
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) => {
                if !is_away {
                    tracing::warn!(file = %file.display(), %error, "the mesh-wide settings cannot be read; the last ones stay");
                }
                (before, is_away) = (None, true);
                continue;
            }
        };
        is_away = false;
        if text == known {
            before = None;
        } else if before.as_ref() == Some(&text) {
            let change = Change::MeshConfig { text: text.clone(), file: file.display().to_string() };
            if changes.send(change).await.is_err() {
                return;
            }
            (known, before) = (text, None);
        } else {
            before = Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_text_is_told_once_and_a_missing_file_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mesh.yaml");
        std::fs::write(&file, "a: 1").unwrap();
        let (tell, mut told) = mpsc::channel(4);
        let following = tokio::spawn(follow(file.clone(), "a: 1".to_owned(), tell));
        std::fs::write(&file, "a: 2").unwrap();
        let mut next = async || match told.recv().await {
            Some(Change::MeshConfig { text, .. }) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(next().await, "a: 2");
        std::fs::remove_file(&file).unwrap();
        // As Kubernetes and careful editors replace a file.
        std::fs::write(folder.path().join("new"), "a: 3").unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
        assert_eq!(next().await, "a: 3");
        following.abort();
    }
}
