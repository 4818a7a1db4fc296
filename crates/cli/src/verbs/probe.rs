//! `fencepost probe`: whether a store may hold a log, and what a conditional PUT costs there.

use std::pin::pin;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use fencepost::wal::{PutFigures, Survey, SurveyOptions, SurveyReport, SurveyStep};
use fencepost_wal::Error as WalError;
use serde_json::{Value, json};

use tokio::sync::watch;

use crate::args::{Output, ProbeArgs};
use crate::error::{CliError, Exit, Result};
use crate::progress::Progress;
use crate::{output, table};

/// How long the end of a step is waited for after Ctrl-C.
const LAST_STEP: Duration = Duration::from_secs(5);

/// Probes and says what was found.
pub(crate) async fn run(args: ProbeArgs) -> Result<()> {
    let store = table::open_store(&args.url, &args.storage)?;
    let options = SurveyOptions {
        rounds: args.rounds as usize,
        racers: usize::from(args.racers),
        object_bytes: args.size as usize,
        measure_for: Duration::from_secs(u64::from(args.seconds)),
    };
    let survey = Survey::new(&store, options)?;
    let surveyed = until_interrupted(&survey).await;
    let cleaned = survey.clean_up().await;
    let url = store.url().to_string();
    let report = match surveyed {
        Ok(report) => report,
        Err(stopped) => {
            let error = judged(stopped, &url, args.output.output)?;
            return Err(match cleaned {
                Ok(()) => error,
                Err(left) => error.note(format_args!("what was written could not be deleted: {left}")),
            });
        }
    };
    cleaned.map_err(|e| CliError::from(e).context("the store is fit, but what was written could not be deleted"))?;
    output::result(args.output.output, &text(&url, &report), &value(&url, &report))
}

async fn until_interrupted(survey: &Survey) -> Result<SurveyReport, Stopped> {
    let mut bar = Progress::races();
    let mut timing = false;
    let (step, mut steps) = watch::channel(());
    let mut running = pin!(survey.run(|at| {
        match at {
            SurveyStep::Races(done, of) => bar.at(done as u64, of as u64),
            SurveyStep::Puts(timed) => {
                if !std::mem::replace(&mut timing, true) {
                    bar = Progress::puts();
                }
                bar.to(timed as u64);
            }
        }
        step.send_replace(());
    }));
    tokio::select! {
        report = &mut running => return report.map_err(Stopped::By),
        _ = tokio::signal::ctrl_c() => {}
    }
    // Up to the end of the step: what is under way would land behind the clean-up's back.
    steps.mark_unchanged();
    tokio::select! {
        biased;
        _ = steps.changed() => {}
        _ = &mut running => {}
        () = tokio::time::sleep(LAST_STEP) => {}
    }
    Err(Stopped::Interrupted)
}

enum Stopped {
    By(WalError),
    Interrupted,
}

/// The error to end with. For a program an unfit store is a result too.
fn judged(stopped: Stopped, url: &str, format: Output) -> Result<CliError> {
    let error = match stopped {
        Stopped::Interrupted => return Ok(CliError::new(Exit::Interrupted, "stopped by Ctrl-C")),
        Stopped::By(error) => error,
    };
    if let (WalError::StoreUnfit { reason, .. }, Output::Json) = (&error, format) {
        output::json(&json!({ "url": url, "fit": false, "reason": reason }))?;
    }
    let help =
        "no log may be kept there: use a store that honours `If-None-Match: *`, or one of its settings that does";
    let is_unfit = matches!(error, WalError::StoreUnfit { .. });
    let error = CliError::from(error);
    Ok(if is_unfit { error.help(help) } else { error })
}

fn text(url: &str, report: &SurveyReport) -> String {
    let count = |n: usize| output::count(n as u64);
    let answers = &report.answers;
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(["PUT", "at once", "timed", "p50 ms", "p99 ms", "PUTs/s"]);
    for figures in &report.puts {
        table.add_row([
            if figures.conditional { "conditional".to_owned() } else { "plain".to_owned() },
            figures.at_once.to_string(),
            count(figures.puts),
            format!("{:.2}", ms(figures.p50)),
            format!("{:.2}", ms(figures.p99)),
            count(figures.per_second.round() as usize),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lost = match answers.lost {
        0 => String::new(),
        lost => format!("\n{} answered \"already exists\" about its own object", output::plural(lost as u64, "create")),
    };
    format!(
        "{url} can hold a log\n\n{} of {} creates of one key: one winner each, read and listed at once, never replaced\n\
         losers were answered: {} x 412, {} x 409, {} x \"already exists\" without a status{lost}\n\n\
         PUTs of {} bytes, conditional and plain ones in turns:\n\n{}\n\nthe condition costs {} of the median alone, \
         {} with 16 at once",
        output::plural(report.rounds as u64, "race"),
        report.racers,
        count(answers.status_412),
        count(answers.status_409),
        count(answers.exists),
        count(report.object_bytes),
        table.trim_fmt(),
        percent(report.cost_of_condition(1)),
        percent(report.cost_of_condition(16)),
    )
}

fn percent(part: Option<f64>) -> String {
    part.map_or_else(|| "an unknown part".to_owned(), |part| format!("{:+.1} %", part * 100.0))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn value(url: &str, report: &SurveyReport) -> Value {
    let answers = &report.answers;
    let puts = |figures: &PutFigures| {
        json!({
            "conditional": figures.conditional,
            "at_once": figures.at_once,
            "puts": figures.puts,
            "p50_ms": ms(figures.p50),
            "p99_ms": ms(figures.p99),
            "per_second": figures.per_second,
        })
    };
    json!({
        "url": url,
        "fit": true,
        "rounds": report.rounds,
        "racers": report.racers,
        "answers": {
            "created": answers.created,
            "status_412": answers.status_412,
            "status_409": answers.status_409,
            "exists_without_status": answers.exists,
            "lost": answers.lost,
        },
        "object_bytes": report.object_bytes,
        "puts": report.puts.iter().map(puts).collect::<Vec<_>>(),
        "cost_of_condition": { "at_once_1": report.cost_of_condition(1), "at_once_16": report.cost_of_condition(16) },
    })
}
