//! What was measured: figures of every contender and round, their medians, ratios and goals, for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One measurement: figures by name, with their units in it, always in the same order.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// The measurements of one contender.
#[derive(Debug)]
pub(crate) struct Line {
    /// One for each of the table's labels.
    pub(crate) labels: Vec<String>,
    pub(crate) rounds: Vec<Figures>,
}

impl Line {
    /// The median of a figure over the rounds. `None`: it was not measured.
    pub(crate) fn median(&self, figure: &str) -> Option<f64> {
        let of_round = |round: &Figures| round.iter().find(|(name, _)| *name == figure).map(|(_, value)| *value);
        let mut values: Vec<f64> = self.rounds.iter().filter_map(of_round).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            count if count % 2 == 1 => values.get(middle).copied(),
            _ => Some((values.get(middle - 1)? + values.get(middle)?) / 2.0),
        }
    }

    fn spread(&self, figure: &str) -> Option<(f64, f64)> {
        let of_round = |round: &Figures| round.iter().find(|(name, _)| *name == figure).map(|(_, value)| *value);
        let values = || self.rounds.iter().filter_map(of_round);
        Some((values().min_by(f64::total_cmp)?, values().max_by(f64::total_cmp)?))
    }
}

/// A table of measurements.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) scenario: &'static str,
    pub(crate) title: String,
    pub(crate) labels: Vec<&'static str>,
    pub(crate) lines: Vec<Line>,
    /// The figure that plots and the column "ratio" show.
    pub(crate) main: Option<&'static str>,
    pub(crate) notes: Vec<String>,
    pub(crate) goals: Vec<Goal>,
}

/// What a figure should be, and what it is.
#[derive(Debug)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) found: f64,
    pub(crate) at_most: Option<f64>,
    pub(crate) at_least: Option<f64>,
}

impl Goal {
    pub(crate) fn is_reached(&self) -> bool {
        self.at_most.is_none_or(|most| self.found <= most) && self.at_least.is_none_or(|least| self.found >= least)
    }
}

impl Table {
    pub(crate) fn new(scenario: &'static str, title: impl Into<String>, labels: &[&'static str]) -> Self {
        Self {
            scenario,
            title: title.into(),
            labels: labels.to_vec(),
            lines: Vec::new(),
            main: None,
            notes: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Adds a measurement to the line with these labels, which is made if there is none.
    pub(crate) fn add(&mut self, labels: &[&str], figures: Figures) {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        match self.lines.iter_mut().find(|line| line.labels == labels) {
            Some(line) => line.rounds.push(figures),
            None => self.lines.push(Line { labels, rounds: vec![figures] }),
        }
    }

    /// The median of a figure in the line with these labels.
    pub(crate) fn median(&self, labels: &[&str], figure: &str) -> Option<f64> {
        self.lines.iter().find(|line| line.labels.iter().map(String::as_str).eq(labels.iter().copied()))?.median(figure)
    }

    pub(crate) fn at_most(&mut self, what: impl Into<String>, found: Option<f64>, limit: f64) {
        self.goal(what.into(), found, Some(limit), None);
    }

    pub(crate) fn at_least(&mut self, what: impl Into<String>, found: Option<f64>, limit: f64) {
        self.goal(what.into(), found, None, Some(limit));
    }

    fn goal(&mut self, what: String, found: Option<f64>, at_most: Option<f64>, at_least: Option<f64>) {
        // A goal about something that was not run is no goal of this run.
        if let Some(found) = found {
            self.goals.push(Goal { what, found, at_most, at_least });
        }
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Names of the figures, in order of appearance.
    pub(crate) fn figures(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (name, _) in self.lines.iter().flat_map(|line| &line.rounds).flatten() {
            if !names.contains(name) {
                names.push(*name);
            }
        }
        names
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let figures = self.figures();
        let mut out = format!("### {}: {}\n\n", self.scenario, self.title);
        let heads = self.labels.iter().chain(&figures).copied().collect::<Vec<_>>().join(" | ");
        let rule =
            self.labels.iter().map(|_| "---").chain(figures.iter().map(|_| "---:")).collect::<Vec<_>>().join("|");
        let _ = writeln!(out, "| {heads} |\n|{rule}|");
        for line in &self.lines {
            let cells = figures.iter().map(|figure| match line.median(figure) {
                None => "—".to_owned(),
                Some(median) => match line.spread(figure).filter(|_| self.main == Some(*figure)) {
                    Some((least, most)) if least < most => {
                        format!("{} ({}–{})", number(median), number(least), number(most))
                    }
                    _ => number(median),
                },
            });
            let cells = line.labels.iter().cloned().chain(cells).collect::<Vec<_>>().join(" | ");
            let _ = writeln!(out, "| {cells} |");
        }
        out.push('\n');
        for note in &self.notes {
            let _ = writeln!(out, "* {note}");
        }
        for goal in &self.goals {
            let limit = match (goal.at_most, goal.at_least) {
                (Some(most), _) => format!("at most {}", number(most)),
                (_, Some(least)) => format!("at least {}", number(least)),
                _ => String::new(),
            };
            let verdict = if goal.is_reached() { "reached" } else { "**not reached**" };
            let _ = writeln!(out, "* goal: {}, {limit}: {} — {verdict}", goal.what, number(goal.found));
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        let rounds = |line: &Line| -> Vec<Value> {
            let object =
                |round: &Figures| round.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            line.rounds.iter().map(|round| Value::Object(object(round))).collect()
        };
        let lines = self.lines.iter().map(|line| {
            let labels = self.labels.iter().zip(&line.labels).map(|(name, label)| ((*name).to_owned(), json!(label)));
            json!({ "labels": Value::Object(labels.collect()), "rounds": rounds(line) })
        });
        let goals = self.goals.iter().map(|goal| {
            json!({
                "what": goal.what,
                "found": goal.found,
                "at_most": goal.at_most,
                "at_least": goal.at_least,
                "reached": goal.is_reached(),
            })
        });
        json!({
            "scenario": self.scenario,
            "title": self.title,
            "lines": lines.collect::<Vec<_>>(),
            "notes": self.notes,
            "goals": goals.collect::<Vec<_>>(),
        })
    }
}

/// Three significant digits; thousands apart.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        let digits = format!("{size:.0}");
        let mut out = String::new();
        for (n, digit) in digits.chars().enumerate() {
            if n > 0 && (digits.len() - n).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        return if value < 0.0 { format!("-{out}") } else { out };
    }
    let decimals = match size {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let cases =
            [(0.0, "0"), (0.0123, "0.012"), (1.0, "1"), (12.34, "12.3"), (999.6, "1000"), (1234567.0, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn medians_and_goals() {
        let mut table = Table::new("x", "y", &["system"]);
        for value in [3.0, 1.0, 2.0] {
            table.add(&["a"], vec![("ms", value)]);
        }
        table.add(&["b"], vec![("ms", 1.0)]);
        table.add(&["b"], vec![("ms", 2.0)]);
        assert_eq!(table.median(&["a"], "ms"), Some(2.0));
        assert_eq!(table.median(&["b"], "ms"), Some(1.5));
        assert_eq!(table.median(&["c"], "ms"), None);
        table.at_most("a", Some(2.0), 2.0);
        table.at_least("b", Some(1.5), 1.6);
        table.at_least("was not run", None, 1.0);
        let reached: Vec<bool> = table.goals.iter().map(Goal::is_reached).collect();
        assert_eq!(reached, [true, false]);
        assert!(table.markdown().contains("**not reached**"));
    }
}
