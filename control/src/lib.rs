//! The process around the dataplane: configuration, kernel mirror, metrics, API and the command-line client.
//!
//! Everything slow lives here, on one tokio thread of `sluiced`: it reads the YAML ([`config`]), compiles it and has
//! each worker take it over ([`publish`]), keeps the workers' routes and neighbours those of the kernel ([`kernel`]),
//! and answers Prometheus ([`metrics`]) and `sluicectl` ([`api`]). The dataplane is reached through `dataplane::api`
//! only; no packet is seen here.
//!
//! [`client`] is the other end of the socket: `sluicectl`, which links no DPDK.

pub mod alarm;
pub mod api;
pub mod changes;
pub mod client;
pub mod config;
pub mod cpu;
pub mod daemon;
pub mod gateway;
pub mod kernel;
pub mod latency;
pub mod leases;
pub mod ledger;
pub mod metrics;
pub mod publish;
pub mod sweep;
pub mod workers;
