//! The gateway process between start and stop.
//!
//! *Life-cycle*: [`Listeners::bind`] before the dataplane starts, so that a second instance is refused early; then
//! [`run`]: the policy comes into force, the twins are set up, the kernel is mirrored, and only then is anyone
//! answered. It ends when told to; the socket's file goes first, then the caller stops the dataplane, and the twins
//! take addresses and routes with them.
//! *Threads*: one tokio thread. *Limits*: open dumps get `GRACE` to end; streams of events end at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::socket::{ControlSocket, SocketError};
use crate::config::Config;
use crate::gateway::{Gateway, KernelSide, LinkProbe};
use crate::kernel::mirror::Mirror;
use crate::kernel::state::TwinSpec;
use crate::kernel::{KernelError, setup};
use crate::ledger::Ledger;
use crate::publish::{PublishError, Publisher};
use crate::workers::{Attachment, Workers};

/// How long requests under way may take once the process was told to stop.
const GRACE: Duration = Duration::from_millis(500);

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No metrics address.
    #[error("metrics.listen: cannot listen on {address}: {error}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The kernel refused its part.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The policy did not come into force.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// No thread or signal handler could be had.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
}

/// What is listened on, before anyone is answered.
pub struct Listeners {
    control: UnixListener,
    socket: ControlSocket,
    metrics: Option<TcpListener>,
}

impl Listeners {
    /// Takes the control socket and the metrics address.
    ///
    /// # Errors
    /// Where another instance has them, or the system refuses.
    pub async fn bind(config: &Config) -> Result<Self, DaemonError> {
        let (control, socket) = ControlSocket::bind(&config.control.socket, config.control.group.as_deref())?;
        let metrics = match config.metrics_listen {
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                Some(listener.map_err(|error| DaemonError::Metrics { address, error })?)
            }
            None => None,
        };
        Ok(Self { control, socket, metrics })
    }
}

/// The started dataplane as [`run`] needs it.
pub struct Dataplane {
    /// Its channels.
    pub attachment: Attachment,
    /// Its link states.
    pub link: LinkProbe,
    /// DPDK's version.
    pub dpdk_version: String,
    /// Whether its interfaces have TAP twins in the kernel; a dataplane without ports has none.
    pub twins: bool,
}

/// Runs the gateway until `stop` resolves; calls `ready` once it forwards and answers.
///
/// # Errors
/// Why it did not start.
pub async fn run(
    listeners: Listeners,
    config: Config,
    dataplane: Dataplane,
    ready: impl FnOnce(&Gateway),
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let names = config.interfaces.iter().map(|i| i.name.clone()).collect();
    let (workers, wishes) = Workers::attach(dataplane.attachment, names, Arc::clone(&ledger))
        .map_err(|error| DaemonError::System { what: "cannot start a thread", error })?;
    let publisher = Publisher::new(Arc::clone(&workers), Arc::clone(&ledger));
    publisher.publish(config.policy.clone()).await?;
    let mut kernel = None;
    if dataplane.twins {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        tokio::spawn(connection);
        setup::bring_up(&handle, &config).await?;
        let twins = config.interfaces.iter();
        let twins = twins.map(|i| TwinSpec { name: i.name.clone(), addresses: i.addresses.clone() }).collect();
        let mirror = Mirror::start(twins, Arc::clone(&workers), wishes).await?;
        kernel = Some(KernelSide { handle, state: mirror.state(), nudge: mirror.nudge() });
        tokio::spawn(mirror.run());
    }
    let file: PathBuf = config.source.clone();
    let gateway = Arc::new(Gateway::new(
        config,
        file,
        workers,
        publisher,
        ledger,
        kernel,
        dataplane.link,
        dataplane.dpdk_version,
    ));
    tokio::spawn(crate::alarm::watch(Arc::clone(&gateway)));
    tokio::spawn(crate::leases::watch(Arc::clone(&gateway)));
    serve(listeners, gateway, ready, stop).await
}

async fn serve(
    listeners: Listeners,
    gateway: Arc<Gateway>,
    ready: impl FnOnce(&Gateway),
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let failed = |error| DaemonError::System { what: "cannot handle SIGHUP", error };
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let (stopping, stopped) = watch::channel(false);
    let told = |mut stopped: watch::Receiver<bool>| async move { drop(stopped.wait_for(|s| *s).await) };
    let api = axum::serve(listeners.control, crate::api::router(Arc::clone(&gateway)));
    let api = tokio::spawn(api.with_graceful_shutdown(told(stopped.clone())).into_future());
    let metrics = listeners.metrics.map(|listener| {
        let server = axum::serve(listener, crate::api::metrics(Arc::clone(&gateway)));
        tokio::spawn(server.with_graceful_shutdown(told(stopped)).into_future())
    });
    ready(&gateway);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(()) = hangup.recv() => {
                let gateway = Arc::clone(&gateway);
                tokio::spawn(async move { gateway.reload(None).await });
            }
        }
    }
    drop(listeners.socket);
    gateway.workers.changes().close();
    stopping.send_replace(true);
    let ended = async {
        let _ = api.await;
        if let Some(metrics) = metrics {
            let _ = metrics.await;
        }
    };
    let _ = tokio::time::timeout(GRACE, ended).await;
    Ok(())
}

/// Resolves at SIGTERM or SIGINT.
///
/// # Errors
/// Where the handlers cannot be installed.
pub fn stop_signal() -> Result<impl Future<Output = ()>, DaemonError> {
    let failed = |error| DaemonError::System { what: "cannot handle signals", error };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
