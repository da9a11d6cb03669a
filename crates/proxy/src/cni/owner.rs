//! Whether the agent's DaemonSet is being taken away, which only the API server knows: an agent that ends for another reason
//! leaves the plug-in where it is, since pods go on starting on its node.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::api::{Answer, Api};

/// Which DaemonSet.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// Whom to ask.
    pub(super) api: Api,
    /// Namespace of the DaemonSet.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

/// What became of the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is there.
    Stays,
    /// It is gone, or going.
    Gone,
    /// The agent may not ask.
    Refused,
}

impl Owner {
    /// Asks.
    ///
    /// # Errors
    /// The API server cannot be reached, or says something else.
    pub(super) async fn ask(&self) -> Result<Found> {
        let path = format!("/apis/apps/v1/namespaces/{}/daemonsets/{}", self.namespace, self.name);
        read(&self.api.ask("GET", &path, "").await?)
    }
}

/// What an answer says.
fn read(answer: &Answer) -> Result<Found> {
    match answer.status {
        200 => {
            let object: Value = serde_json::from_str(&answer.body).context("the API server answers something else")?;
            let going = object["metadata"]["deletionTimestamp"].is_string();
            Ok(if going { Found::Gone } else { Found::Stays })
        }
        // Without its account there is nobody whom the agent could be running for.
        401 | 404 => Ok(Found::Gone),
        403 => Ok(Found::Refused),
        other => bail!("the API server answers {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let of = |status: u16, body: &str| read(&Answer { status, body: body.to_owned() }).ok();
        assert_eq!(of(200, "{\"metadata\": {\"name\": \"a\"}}"), Some(Found::Stays));
        assert_eq!(of(200, "{\"metadata\": {\"deletionTimestamp\": \"2026-01-01T00:00:00Z\"}}"), Some(Found::Gone));
        assert_eq!((of(404, "{}"), of(401, "{}")), (Some(Found::Gone), Some(Found::Gone)));
        assert_eq!((of(403, "{}"), of(500, "{}"), of(200, "no")), (Some(Found::Refused), None, None));
    }
}
