//! `meshctl validate`: each object by itself, by the checks of the control plane's webhook, without a cluster.

use std::process::ExitCode;

use anyhow::Result;
use api::decode;
use api::problem::{Problem, Severity};

use super::analyze::{collect, read};
use crate::cli::operator::ValidateArguments;

/// Prints a line for each problem and each file.
///
/// # Errors
/// A file cannot be read.
pub(super) fn run(arguments: &ValidateArguments) -> Result<ExitCode> {
    let mut files = Vec::new();
    arguments.files.iter().try_for_each(|path| collect(path, true, &mut files))?;
    let mut all_good = true;
    for file in &files {
        let (name, text) = read(file)?;
        let problems = judge(&text, &name, &arguments.namespace);
        problems.iter().for_each(|problem| eprintln!("{problem}"));
        let is_good = problems.iter().all(|problem| problem.severity != Severity::Error);
        println!("{name:?} is {}", if is_good { "valid" } else { "not valid" });
        all_good &= is_good;
    }
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is wrong with the objects of a file, and what in them is unusual.
fn judge(text: &[u8], name: &str, namespace: &str) -> Vec<Problem> {
    let decoded = decode::documents(text, name, namespace);
    let own = decoded.objects.iter().flat_map(plan::intrinsic).map(|mut problem| {
        if problem.origin.line > 0 {
            problem.origin.line = decode::line_of(text, &problem.origin, &problem.field);
        }
        problem
    });
    let own: Vec<Problem> = own.collect();
    let all = decoded.problems.into_iter().chain(own);
    all.filter(|problem| problem.severity != Severity::Info).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_is_judged_by_itself() {
        let good = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [a], http: [{route: [{destination: {host: later, subset: v1}}]}]}\n";
        assert_eq!(judge(good.as_bytes(), "a.yaml", "shop"), Vec::new());
        let bad = good.replace("http: [{", "http: [{timeout: soon, ");
        let problems = judge(bad.as_bytes(), "a.yaml", "shop");
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.severity == Severity::Error && problem.field.ends_with("timeout"), "{problem}");
        assert_eq!((problem.origin.to_string().as_str(), problem.object.namespace.as_str()), ("a.yaml:4", "shop"));
    }
}
