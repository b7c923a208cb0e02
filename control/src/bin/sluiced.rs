//! `sluiced`: the gateway process.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use control::config::{self, Config};
use tracing_subscriber::EnvFilter;

/// Sluice, a stateful firewall and NAT gateway on DPDK.
#[derive(Debug, Parser)]
#[command(name = "sluiced", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/sluice/sluice.yaml")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sluiced: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.check {
        config::load(&arguments.config)?;
        println!("{}: ok", arguments.config.display());
        return Ok(());
    }
    control::cpu::check().map_err(anyhow::Error::msg)?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
    let mut config = config::load(&std::path::absolute(&arguments.config)?)?;
    config.launch.file_prefix = file_prefix(&config);
    serve(config)
}

/// What DPDK's files of this instance are called: by the control socket, which no two running instances share, so that
/// an instance that was killed finds its own leavings again.
fn file_prefix(config: &Config) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    config.control.socket.hash(&mut hasher);
    format!("sluice-{:016x}", hasher.finish())
}

#[cfg(feature = "dpdk")]
fn serve(config: Config) -> anyhow::Result<()> {
    use std::sync::Arc;
    use std::time::Duration;

    use control::daemon::{self, Dataplane, Listeners};
    use control::kernel::setup;
    use dataplane::api::launch;
    use sd_notify::NotifyState;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = runtime.block_on(Listeners::bind(&config))?;
    runtime.block_on(setup::names_are_free(&config))?;
    let stop = {
        let _entered = runtime.enter();
        daemon::stop_signal()?
    };
    let handle = Arc::new(launch::gateway(&config.launch)?);
    for note in &handle.notes {
        tracing::info!("{note}");
    }
    let probe = Arc::clone(&handle);
    let dataplane = Dataplane {
        attachment: (&*handle).into(),
        link: Box::new(move |i| Some(probe.link(i))),
        dpdk_version: launch::dpdk_version().trim_start_matches("DPDK ").to_owned(),
        twins: true,
    };
    let ready = |g: &control::gateway::Gateway| {
        let config = g.config();
        tracing::info!(
            version = control::gateway::VERSION,
            dpdk = g.dpdk_version,
            workers = g.workers.len(),
            interfaces = config.interfaces.len(),
            "ready"
        );
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    };
    let result = runtime.block_on(daemon::run(listeners, config, dataplane, ready, stop));
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    // The tasks hold the link probe, and with it the handle.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Ok(handle) = Arc::try_unwrap(handle) {
        let report = handle.stop()?;
        for note in &report.notes {
            tracing::warn!("{note}");
        }
        if report.leaked_mbufs > 0 {
            tracing::warn!(mbufs = report.leaked_mbufs, "packet buffers were not given back");
        }
    }
    Ok(result?)
}

#[cfg(not(feature = "dpdk"))]
fn serve(_: Config) -> anyhow::Result<()> {
    anyhow::bail!("this build has no DPDK: build with the feature `dpdk`")
}
