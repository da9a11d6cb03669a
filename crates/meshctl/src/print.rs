//! How results are shown: a table as kubectl prints it, JSON, or YAML.

use std::fmt::Write;

use anyhow::Result;
use api::debug::Why;
use clap::ValueEnum;
use serde::Serialize;

/// What `-o` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    #[value(aliases = ["short", "log"])]
    Table,
    /// JSON, indented.
    Json,
    /// YAML.
    Yaml,
}

/// Rows under a heading, columns padded, no borders.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading = heading.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A value as JSON or YAML, with a line end.
///
/// # Errors
/// The value cannot be written so.
pub fn structured(format: Format, value: &impl Serialize) -> Result<String> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value)?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value)?,
    };
    Ok(format!("{}\n", text.trim_end()))
}

/// A failure in a few lines: the sentence first.
pub fn reason(why: &Why) -> String {
    let mut text = format!("{}\n", why.sentence);
    let status = if why.status == 0 { String::new() } else { why.status.to_string() };
    let object = match why.place.as_str() {
        "" => why.object.clone(),
        place => format!("{}, {place}", why.object),
    };
    let rows = [
        ("request", &why.request),
        ("request id", &why.request_id),
        ("seen by", &format!("{} ({}), {}", why.proxy, why.direction, why.time)),
        ("answered", &format!("{status} {} {}", why.flag, why.details)),
        ("at fault", &why.side),
        ("object", &object),
        ("route", &why.route),
        ("cluster", &why.cluster),
        ("endpoint", &why.endpoint),
    ];
    for (name, value) in rows.iter().filter(|(_, value)| !value.trim().is_empty()) {
        text += &format!("  {name:<11} {}\n", value.trim());
    }
    text
}

/// A step that takes a while: a line that changes on a terminal, one line at its end elsewhere.
pub struct Progress {
    title: String,
    bar: indicatif::ProgressBar,
    told: String,
    started: std::time::Instant,
}

impl Progress {
    /// Begins.
    pub fn start(title: &str) -> Self {
        let bar = indicatif::ProgressBar::new_spinner().with_message(title.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Self { title: title.to_owned(), bar, told: String::new(), started: std::time::Instant::now() }
    }

    /// What it waits for now.
    pub fn tell(&mut self, what: &str) {
        if self.told != what {
            self.told = what.to_owned();
            self.bar.set_message(format!("{}: {what}", self.title));
        }
    }

    /// It is done.
    pub fn done(self, detail: &str) {
        self.bar.finish_and_clear();
        println!("✔ {} ({detail}, {:.1} s)", self.title, self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "long cell".to_owned(), "x".to_owned()],
            vec!["bbbb".to_owned(), "c".to_owned(), String::new()],
        ];
        assert_eq!(table(&["N", "TYPE", "Z"], &rows), "N      TYPE        Z\na      long cell   x\nbbbb   c\n");
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let value = serde_json::json!({"a": [1, "x"]});
        assert_eq!(structured(Format::Json, &value).unwrap(), "{\n  \"a\": [\n    1,\n    \"x\"\n  ]\n}\n");
        assert!(structured(Format::Yaml, &value).unwrap().starts_with("a:"));
    }

    #[test]
    fn the_sentence_comes_first_and_empty_lines_do_not_come() {
        let why = Why {
            sentence: "No endpoint is healthy.".into(),
            status: 503,
            flag: "UH".into(),
            details: "no_healthy_upstream".into(),
            ..Why::default()
        };
        let text = reason(&why);
        assert!(text.starts_with("No endpoint is healthy.\n"));
        assert!(text.contains("answered    503 UH no_healthy_upstream"));
        assert!(!text.contains("object"));
    }
}
