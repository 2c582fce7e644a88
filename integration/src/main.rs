//! `lab`: the walk-through, its check, and what both need.
use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lab::{
    bench, chaos::cli::ChaosArgs, check, demo, facts::Facts, faults, image::Plan, progress::Progress, report, sim,
    sweep, tools, world::WorldPlan,
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(name = "lab", version, about = "Clusters of real nodes on one machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Get the programs that the lab runs, and print their versions.
    Setup,
    /// Run the walk-through: two clusters of two nodes pull one image. Needs root.
    Demo {
        /// Write the raw facts here.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Keep state and logs on disk.
        #[arg(long)]
        keep: bool,
    },
    /// Judge the facts of a walk-through.
    Check {
        /// What `lab demo --json` wrote.
        file: PathBuf,
    },
    /// Measure. Needs root.
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Break everything for minutes while images are pulled, and look whether it mattered. Needs root.
    Chaos(ChaosArgs),
    /// Simulate one blob to many nodes with the daemons' own decisions, in simulated time.
    Sim(Box<sim::Options>),
    /// The table of faults, which the lab's tests fill.
    Faults {
        #[command(subcommand)]
        what: FaultsCommand,
    },
    /// Remove what a crashed run left. Needs root; every run does this first.
    Sweep,
}

#[derive(Debug, Subcommand)]
enum FaultsCommand {
    /// Forget every row, before a run.
    Forget,
    /// Print the rows of a run, and the time that each scene took.
    Print,
    /// Fail unless every row is there that the operator's page lists and that this run was asked for.
    Check,
    /// Print the operator's page, made of the rows of a run.
    Page,
}

/// Work on blocking threads that outlives the run by more than this is left behind.
const LAST_WORK: std::time::Duration = std::time::Duration::from_secs(2);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lab: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run_until_told());
    runtime.shutdown_timeout(LAST_WORK);
    code
}

async fn run_until_told() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "lab=info,warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let work = run(Cli::parse().command);
    let ended = tokio::select! {
        ended = work => ended,
        // Dropping the work takes everything down.
        () = told_to_stop() => {
            eprintln!("lab: taken down");
            return ExitCode::from(130);
        }
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => {
            let tools = tokio::task::spawn_blocking(tools::setup).await??;
            tools.versions()?.iter().for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { json, keep } => {
            let plan = WorldPlan { keep, ..WorldPlan::two_clusters() };
            let facts = demo::walk_through(&Plan::demo(), plan, &Progress::on_stderr()).await?;
            println!("{}", report::text(&facts));
            if let Some(file) = json {
                let text = serde_json::to_string_pretty(&facts)?;
                std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            }
            Ok(judge(&facts))
        }
        Command::Check { file } => {
            let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            let facts: Facts = serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
            Ok(judge(&facts))
        }
        Command::Bench { what } => {
            bench::run(what).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Chaos(chaos) => chaos.run().await.map(|()| ExitCode::SUCCESS),
        Command::Sim(options) => {
            tokio::task::spawn_blocking(move || sim::simulate(&options)).await??;
            Ok(ExitCode::SUCCESS)
        }
        Command::Faults { what } => table_of_faults(&what),
        Command::Sweep => {
            sweep::sweep()?.iter().for_each(|line| println!("removed {line}"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn table_of_faults(what: &FaultsCommand) -> Result<ExitCode> {
    match what {
        FaultsCommand::Forget => faults::forget()?,
        FaultsCommand::Print => {
            print!("{}", faults::table(&faults::recorded()?));
            println!("\ntime that each scene took:\n{}", faults::page::times(&faults::journal::this_run()?));
        }
        FaultsCommand::Check => {
            let wrong = faults::complete::of_this_run()?;
            wrong.iter().for_each(|line| println!("table of faults: {line}"));
            if !wrong.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
            println!("table of faults: every row that must be there is there");
        }
        FaultsCommand::Page => {
            let versions = tools::Tools::locate()?.containerds()?;
            print!("{}", faults::page::page(&faults::recorded()?, &faults::journal::this_run()?, &versions));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn judge(facts: &Facts) -> ExitCode {
    let verdicts = check::judge(facts);
    print!("{}", report::verdicts(&verdicts));
    if verdicts.iter().all(|verdict| verdict.holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ctrl-C, or the end of the terminal or of the machine.
async fn told_to_stop() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}
