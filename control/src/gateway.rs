//! The running gateway as API, metrics and signals see it, and the reload.
//!
//! *Life-cycle*: made by the daemon once policy and forwarding table are in force; lives until the process ends.
//! *Threads*: shared by tasks on control's tokio thread. *Limits*: one reload at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use dataplane::api::launch::Link;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::api::wire::Swept;
use crate::config::{Config, ConfigError};
use crate::kernel::KernelError;
use crate::kernel::setup;
use crate::kernel::state::State;
use crate::latency::Reset;
use crate::leases::Meter;
use crate::ledger::Ledger;
use crate::publish::{PublishError, Published, Publisher};
use crate::sweep::{self, PATIENCE};
use crate::workers::Workers;

/// This build's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a reload changed nothing, or not all.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file is wrong; nothing has changed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Reading the file failed in an unforeseen way; nothing has changed.
    #[error("the configuration reader failed")]
    Reader,
    /// The file changes what is fixed at start; nothing has changed.
    #[error("{key} cannot change while the gateway runs: restart sluiced for that")]
    NeedsRestart {
        /// The YAML path.
        key: String,
    },
    /// The policy did not come into force.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The policy is in force, but the kernel refused its part.
    #[error("policy generation {generation} is in force, but {error}")]
    Kernel {
        /// The new generation.
        generation: u64,
        /// What was refused.
        error: KernelError,
    },
}

/// The kernel's side, where there is one: tests run without.
pub struct KernelSide {
    /// For requests.
    pub handle: rtnetlink::Handle,
    /// What the mirror knows.
    pub state: Arc<RwLock<State>>,
    /// Wakes the mirror.
    pub nudge: Arc<Notify>,
}

/// Asks the dataplane for an interface's link state.
pub type LinkProbe = Box<dyn Fn(usize) -> Option<Link> + Send + Sync>;

/// See the module.
pub struct Gateway {
    /// The configuration in force.
    pub config: RwLock<Arc<Config>>,
    /// The file that a reload without a name reads.
    pub config_file: PathBuf,
    /// The workers.
    pub workers: Arc<Workers>,
    /// What brings policies into force.
    pub publisher: Publisher,
    /// The rules' counters.
    pub ledger: Arc<Mutex<Ledger>>,
    /// The kernel's side.
    pub kernel: Option<KernelSide>,
    /// Link states.
    pub link: LinkProbe,
    /// When the process was ready.
    pub started: Instant,
    /// Time stamp counter ticks per second; `None` where unknown.
    pub tsc_hz: Option<f64>,
    /// DPDK's version, `none` where this build has no DPDK.
    pub dpdk_version: String,
    /// Reloads that succeeded and that did not.
    pub reloads: [AtomicU64; 2],
    /// How the use of translated ports grows.
    pub leases: Meter,
    /// The most failed translations without a rule that metrics have shown.
    pub nameless_failures: AtomicU64,
    /// Since when latency is shown.
    pub latency_reset: Reset,
    reloading: tokio::sync::Mutex<()>,
}

impl Gateway {
    /// Puts the parts together; the first policy must be in force.
    #[expect(clippy::too_many_arguments, reason = "called twice, each argument of its own type")]
    pub fn new(
        config: Config,
        config_file: PathBuf,
        workers: Arc<Workers>,
        publisher: Publisher,
        ledger: Arc<Mutex<Ledger>>,
        kernel: Option<KernelSide>,
        link: LinkProbe,
        dpdk_version: String,
    ) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
            config_file,
            workers,
            publisher,
            ledger,
            kernel,
            link,
            started: Instant::now(),
            tsc_hz: crate::cpu::tsc_hz(),
            dpdk_version,
            reloads: Default::default(),
            leases: Meter::default(),
            nameless_failures: AtomicU64::new(0),
            latency_reset: Reset::default(),
            reloading: tokio::sync::Mutex::new(()),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read())
    }

    /// Whether interface `interface` has a carrier: the port's word, else the twin's.
    pub fn interface_up(&self, interface: usize) -> bool {
        if let Some(link) = (self.link)(interface) {
            return link.up;
        }
        let twin = self.kernel.as_ref().and_then(|k| k.state.read().links().get(interface).copied().flatten());
        twin.is_some_and(|l| l.running)
    }

    /// Reads `file` (the file given at start where `None`), brings it into force, and has the connections looked at.
    ///
    /// # Errors
    /// What is wrong with it; see [`ReloadError`] for how much has then changed.
    pub async fn reload(&self, file: Option<PathBuf>) -> Result<(Published, Swept), ReloadError> {
        let _turn = self.reloading.lock().await;
        let result = self.reload_inner(file.unwrap_or_else(|| self.config_file.clone())).await;
        self.reloads[usize::from(result.is_err())].fetch_add(1, Relaxed);
        match &result {
            Ok((p, swept)) => tracing::info!(generation = p.generation, took = ?p.took, "reloaded; {swept}"),
            Err(e) => tracing::error!("reload: {e}"),
        }
        result
    }

    async fn reload_inner(&self, file: PathBuf) -> Result<(Published, Swept), ReloadError> {
        let new = read(file).await?;
        let old = self.config();
        if let Some(key) = needs_restart(&old, &new) {
            return Err(ReloadError::NeedsRestart { key });
        }
        let sweep = sweep::begin(&self.workers);
        let published = self.publisher.publish(new.policy.clone()).await?;
        let new = Arc::new(new);
        *self.config.write() = Arc::clone(&new);
        let mut kernel_has_it = Ok(());
        if let Some(kernel) = &self.kernel {
            for (i, interface) in new.interfaces.iter().enumerate() {
                kernel.state.write().prefer(i, interface.addresses.clone());
            }
            let changed = setup::change(&kernel.handle, &old, &new).await;
            kernel.nudge.notify_one();
            kernel_has_it = changed.map_err(|error| ReloadError::Kernel { generation: published.generation, error });
        }
        let swept = sweep.run(PATIENCE).await;
        kernel_has_it.map(|()| (published, swept))
    }
}

/// Reads and checks `file` on a helper thread: lists may be long.
///
/// # Errors
/// Everything that is wrong with it.
pub async fn read(file: PathBuf) -> Result<Config, ReloadError> {
    let loaded = tokio::task::spawn_blocking(move || crate::config::load(Path::new(&file))).await;
    Ok(loaded.map_err(|_| ReloadError::Reader)??)
}

/// The first key of what is fixed at start that differs.
pub fn needs_restart(old: &Config, new: &Config) -> Option<String> {
    let (a, b) = (&old.launch, &new.launch);
    let names = |c: &Config| c.interfaces.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
    let fixed = [
        ("dataplane.workers", a.workers == b.workers),
        ("dataplane.hugepages", a.hugepages == b.hugepages),
        ("dataplane.burst", a.burst == b.burst),
        ("dataplane.eal_args", a.eal_args == b.eal_args),
        ("dataplane.mbufs", a.mbufs == b.mbufs),
        ("dataplane.poll", a.poll == b.poll),
        ("conntrack.max", a.conntrack_max == b.conntrack_max),
        ("defrag.memory", a.defrag.memory == b.defrag.memory),
        ("defrag.mode", a.defrag.mode == b.defrag.mode),
        ("metrics.listen", old.metrics_listen == new.metrics_listen),
        ("control.socket", old.control.socket == new.control.socket),
        ("control.group", old.control.group == new.control.group),
        ("interfaces (which there are, and their order)", names(old) == names(new)),
    ];
    if let Some((key, _)) = fixed.iter().find(|(_, same)| !same) {
        return Some((*key).to_owned());
    }
    a.interfaces.iter().zip(&b.interfaces).find_map(|(x, y)| {
        let fixed = [("device", x.device == y.device), ("mtu", x.mtu == y.mtu), ("vlan", x.vlan == y.vlan)];
        let (key, _) = fixed.iter().find(|(_, same)| !same)?;
        Some(format!("interfaces.{}.{key}", x.name))
    })
}
