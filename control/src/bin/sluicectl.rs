//! `sluicectl`: asks and steers a running sluiced.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;
use control::client::{ClientError, cli};

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = run(arguments, &mut out).and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // What came before the failure is shown, unless the reader is gone.
            let _ = out.flush();
            if e.exit_status() != 0 {
                eprintln!("sluicectl: {e}");
            }
            ExitCode::from(e.exit_status())
        }
    }
}

fn run(arguments: cli::Cli, out: &mut impl Write) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cli::run(arguments, out, &mut std::io::stderr()))
}
