//! Finds libdpdk, compiles the shim and generates the bindings: only the names listed here.

use std::path::PathBuf;
use std::{env, fs};

/// Oldest release whose names the shim uses.
const OLDEST: &str = "22.11";

/// What is called directly; everything inline or version-dependent is behind `shim_*`.
const FUNCTIONS: &[&str] = &[
    "rte_eal_init",
    "rte_eal_cleanup",
    "rte_eal_get_runtime_dir",
    "rte_strerror",
    "rte_thread_register",
    "rte_thread_unregister",
    "rte_pktmbuf_pool_create",
    "rte_mempool_free",
    "rte_mempool_in_use_count",
    "rte_dev_probe",
    "rte_eth_dev_get_port_by_name",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_dev_close",
    "rte_eth_dev_set_mtu",
    "rte_eth_promiscuous_enable",
    "rte_eth_allmulticast_enable",
    "shim_version",
    "shim_errno",
    "shim_pin",
    "shim_netdev_here",
    "shim_rx_burst",
    "shim_tx_burst",
    "shim_alloc",
    "shim_free",
    "shim_linearise",
    "shim_port_info",
    "shim_port_configure",
    "shim_port_queues",
    "shim_port_reta",
    "shim_port_mac",
    "shim_port_set_mac",
    "shim_port_link",
    "shim_port_remove",
];

const TYPES: &[&str] = &["shim_port"];

const CONSTANTS: &[&str] = &["SHIM_.*", "RTE_PKTMBUF_HEADROOM"];

/// Handled by pointer only: their layout differs between releases, the shim alone looks inside, and `src/lib.rs` makes
/// them types without a size.
const OPAQUE: &[&str] = &["rte_mbuf", "rte_mbuf_.*", "rte_mempool", "rte_mempool_.*", "rte_memzone", "RTE_MARKER.*"];

/// What is linked; drivers are shared objects that the EAL loads from its own directory at start.
const LIBRARIES: &[&str] = &["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=shim");

    let dpdk = match pkg_config::Config::new()
        .atleast_version(OLDEST)
        .cargo_metadata(false)
        .env_metadata(true)
        .probe("libdpdk")
    {
        Ok(dpdk) => dpdk,
        Err(pkg_config::Error::Command { .. }) => {
            println!("cargo::error=pkg-config is missing: install pkg-config and libdpdk-dev");
            return;
        }
        Err(_) => {
            println!("cargo::error=libdpdk {OLDEST} or newer was not found by pkg-config: install libdpdk-dev");
            return;
        }
    };
    for path in &dpdk.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }

    // The probe keeps include paths and drops flags such as `-include rte_config.h`: the shim includes that itself.
    cc::Build::new()
        .file("shim/shim.c")
        .includes(&dpdk.include_paths)
        .flag(format!("-march={}", march()))
        .flag("-std=gnu11")
        .opt_level(3)
        .warnings(true)
        .extra_warnings(true)
        .flag_if_supported("-Wno-unused-parameter")
        .compile("sluice_dpdk_shim");
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib={library}");
    }

    let mut bindings = bindgen::Builder::default()
        .header("shim/shim.h")
        .clang_args(dpdk.include_paths.iter().map(|path| format!("-I{}", path.display())))
        .clang_arg(format!("-march={}", march()))
        .use_core()
        .derive_default(true)
        .generate_comments(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()));
    for name in FUNCTIONS {
        bindings = bindings.allowlist_function(name);
    }
    for name in TYPES {
        bindings = bindings.allowlist_type(name);
    }
    for name in CONSTANTS {
        bindings = bindings.allowlist_var(name);
    }
    for name in OPAQUE {
        bindings = bindings.blocklist_type(name);
    }
    let bindings = match bindings.generate() {
        Ok(bindings) => bindings,
        Err(e) => {
            println!("cargo::error=bindgen could not read DPDK's headers (is libclang-dev installed?): {e}");
            return;
        }
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("bindings.rs");
    if let Err(e) = fs::write(&out, bindings.to_string()) {
        println!("cargo::error={}: {e}", out.display());
    }
}

/// The CPU baseline of `.cargo/config.toml`, for the same instructions in C.
fn march() -> &'static str {
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|f| f == "avx2") { "x86-64-v3" } else { "corei7" }
}
