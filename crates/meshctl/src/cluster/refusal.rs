//! Errors in one sentence for people: what was tried, and what the API server said of it. The client's own texts repeat themselves
//! and hold the answer as a Rust value.

use std::error::Error as _;

use kube::Error;
use kube::config::KubeconfigError;
use kube::core::Status;

/// An error as it is shown.
pub fn told(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let (part, is_last) = match cause.downcast_ref::<Error>() {
            // The sentence before says what is away.
            Some(error @ (Error::HyperError(_) | Error::Service(_)))
                if parts.last().is_some_and(|before| before.contains("does not answer")) =>
            {
                (innermost(error), true)
            }
            // What comes below is the same once more.
            Some(error) => (of_client(error), true),
            // What follows the first line shows the file, with its tokens.
            None if cause.is::<KubeconfigError>() => (first_line(&cause.to_string()), true),
            None => (cause.to_string(), false),
        };
        if !parts.iter().any(|before| before.contains(&part)) {
            parts.push(part);
        }
        if is_last {
            break;
        }
    }
    parts.join(": ")
}

fn of_client(error: &Error) -> String {
    match error {
        Error::Api(status) => of_status(status),
        Error::HyperError(_) | Error::Service(_) => format!("the API server cannot be reached ({})", innermost(error)),
        Error::Auth(_) | Error::InferConfig(_) => format!("the kubeconfig cannot be used ({})", innermost(error)),
        Error::SerdeError(_) => format!("the API server's answer cannot be read ({})", innermost(error)),
        Error::Discovery(_) => format!("the API server does not know the kind ({})", innermost(error)),
        other => other.to_string(),
    }
}

fn of_status(status: &Status) -> String {
    let message = match status.message.trim_end_matches('.') {
        "" => status.reason.as_str(),
        message => message,
    };
    match status.code {
        401 => {
            "the API server does not know who you are; log in again, or name another --kubeconfig or --context".into()
        }
        403 => format!("the API server does not let you: {message}"),
        409 if status.reason == "Conflict" => {
            format!("somebody else changed it at the same time, try again: {message}")
        }
        429 | 503 | 504 => format!("the API server cannot do it now, try again: {message}"),
        500 if message.contains("failed calling webhook") => {
            format!("a webhook does not answer the API server: {message}")
        }
        _ => message.to_owned(),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The reason that is behind all others.
fn innermost(error: &Error) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(below) = cause {
        text = below.to_string();
        cause = below.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn refused(code: u16, reason: &str, message: &str) -> String {
        let status = Status::failure(message, reason).with_code(code);
        let error = anyhow::Error::from(Error::Api(status.boxed())).context("Deployment a/b cannot be applied");
        told(&error)
    }

    #[test]
    fn what_the_api_server_says_is_one_sentence() {
        for (code, reason, message, told) in [
            (422, "Invalid", "spec.x: Required value", "Deployment a/b cannot be applied: spec.x: Required value"),
            (
                403,
                "Forbidden",
                "deployments.apps \"b\" is forbidden",
                "Deployment a/b cannot be applied: the API server does not let you: deployments.apps \"b\" is forbidden",
            ),
            (
                401,
                "Unauthorized",
                "Unauthorized",
                "Deployment a/b cannot be applied: the API server does not know who you are; log in again, or name another --kubeconfig or --context",
            ),
            (404, "NotFound", "", "Deployment a/b cannot be applied: NotFound"),
        ] {
            assert_eq!(refused(code, reason, message), told);
        }
    }

    #[test]
    fn a_broken_kubeconfig_is_not_shown() {
        let broken = "apiVersion: v1\nclusters: [{name: a\nusers: [{name: b, user: {token: hidden}}]\n";
        let error = kube::config::Kubeconfig::from_yaml(broken).unwrap_err();
        let told = told(&anyhow::Error::from(error).context("the kubeconfig cannot be used"));
        assert!(told.starts_with("the kubeconfig cannot be used: ") && told.lines().count() == 1, "{told}");
        assert!(!told.contains("hidden"), "{told}");
    }

    #[test]
    fn other_errors_are_told_once() {
        let error =
            Err::<(), _>(std::io::Error::other("no such file")).context("a cannot be read").context("b").unwrap_err();
        assert_eq!(told(&error), "b: a cannot be read: no such file");
        let twice = anyhow::anyhow!("no such file").context("a: no such file");
        assert_eq!(told(&twice), "a: no such file");
        let away = Error::Service(Box::new(std::io::Error::other("connection refused")));
        assert_eq!(told(&away.into()), "the API server cannot be reached (connection refused)");
        let away = Error::Service(Box::new(std::io::Error::other("connection refused")));
        let error = anyhow::Error::from(away).context("the API server at x does not answer");
        assert_eq!(told(&error), "the API server at x does not answer: connection refused");
    }
}
