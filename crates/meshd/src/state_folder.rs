//! The folder in which the control plane keeps its secrets across restarts.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension("new");
    let wrong = || format!("{} cannot be written", path.display());
    let _ = fs::remove_file(&draft);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).with_context(wrong)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(wrong)?;
    fs::rename(&draft, path).with_context(wrong)
}

/// Makes the state folder if it is not there, for its owner alone.
///
/// # Errors
/// It cannot be made, or is not a folder.
pub fn prepare(folder: &Path) -> Result<()> {
    let wrong = || format!("the state folder {} cannot be used", folder.display());
    if !folder.exists() {
        fs::create_dir_all(folder).with_context(wrong)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).with_context(wrong)?;
    }
    if !folder.is_dir() {
        bail!("the state folder {} is not a folder", folder.display());
    }
    Ok(())
}
