//! `sluice-bench config`.

use bench::flow::Case;
use bench::policy::Setup;
use clap::ValueEnum;

/// What for.
#[derive(clap::Args)]
pub struct Args {
    /// Whose configuration.
    #[arg(long, value_enum)]
    system: System,
    /// What the gateway does to the flows.
    #[arg(long, value_enum)]
    case: Case,
    /// Rules in the filter, in new-connections.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=60_000))]
    rules: u16,
    /// Device of the lan port (sluice).
    #[arg(long, default_value = "")]
    lan: String,
    /// Device of the wan port (sluice).
    #[arg(long, default_value = "")]
    wan: String,
    /// CPUs of the workers, with commas (sluice).
    #[arg(long, default_value = "0")]
    cpus: String,
    /// Packet buffers (sluice).
    #[arg(long, default_value_t = 65_536)]
    mbufs: u64,
    /// Path of the control socket (sluice).
    #[arg(long, default_value = "")]
    socket: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum System {
    /// YAML of sluiced.
    Sluice,
    /// Rules for nft.
    Kernel,
    /// Flows for ovs-ofctl.
    Ovs,
}

/// Prints it.
pub fn run(args: &Args) {
    let setup = Setup {
        case: args.case,
        rules: usize::from(args.rules),
        devices: [args.lan.clone(), args.wan.clone()],
        cpus: args.cpus.clone(),
        mbufs: args.mbufs,
        socket: args.socket.clone(),
    };
    let text = match args.system {
        System::Sluice => setup.sluice(),
        System::Kernel => setup.nft(),
        System::Ovs => setup.openflow(),
    };
    print!("{text}");
}
