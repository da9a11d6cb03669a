//! `meshctl admin log`: how much the control plane tells, part by part.

use anyhow::{Result, bail};
use serde_json::Value;

use super::log::encoded;
use crate::cli::operator::AdminCommand;
use crate::mesh::{Mesh, Method};
use crate::print::{Format, structured, table};

pub(super) async fn run(mesh: &Mesh, command: AdminCommand) -> Result<String> {
    let AdminCommand::Log { pod, level, reset, output } = command;
    let path = match (&level, reset) {
        (Some(level), _) => format!("/debug/logging?level={}", encoded(level)),
        (None, true) => "/debug/logging?reset=true".to_owned(),
        (None, false) => "/debug/logging".to_owned(),
    };
    let method = if level.is_some() || reset { Method::POST } else { Method::GET };
    let mut replicas = mesh.replicas(method, &path, pod.as_deref()).await?;
    if output != Format::Table {
        // All replicas have the same parts; one is asked where it matters which.
        return structured(output, &replicas.swap_remove(0).1);
    }
    let several = replicas.len() > 1;
    let mut text = String::new();
    for (replica, scopes) in replicas {
        if several {
            text += &format!("{replica}:\n");
        }
        text += &shown(&scopes)?;
    }
    Ok(text)
}

fn shown(scopes: &Value) -> Result<String> {
    let Some(scopes) = scopes.as_array() else { bail!("the control plane does not tell its parts") };
    let field = |scope: &Value, name: &str| scope[name].as_str().unwrap_or_default().to_owned();
    let row = |scope: &Value| vec![field(scope, "name"), field(scope, "description"), field(scope, "output_level")];
    Ok(table(&["ACTIVE SCOPE", "DESCRIPTION", "LOG LEVEL"], &scopes.iter().map(row).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_are_shown_with_their_levels() {
        let scopes = json!([{"name": "ads", "description": "xDS.", "output_level": "info"}]);
        assert_eq!(
            shown(&scopes).unwrap(),
            "ACTIVE SCOPE   DESCRIPTION   LOG LEVEL\nads            xDS.          info\n"
        );
        assert!(shown(&json!({})).is_err());
    }
}
