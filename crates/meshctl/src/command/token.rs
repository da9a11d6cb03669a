//! `meshctl token`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use api::join_token;

use crate::cli::TokenCommand;

pub(super) fn run(command: TokenCommand) -> Result<String> {
    let TokenCommand::Create { namespace, service_account, state_dir, ttl } = command;
    let file = state_dir.join(join_token::KEY_FILE);
    let key = std::fs::read(&file)
        .with_context(|| format!("{} cannot be read; it is made by meshd (--state-dir)", file.display()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
    let token = join_token::create(&key, &namespace, &service_account, now, ttl).map_err(anyhow::Error::msg)?;
    Ok(format!("{token}\n"))
}
