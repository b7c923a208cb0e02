#!/usr/bin/env bash
# What CI runs and a developer runs: scripts/check.sh all, or one job, or several:
#   fmt clippy doc seam shell   how the code looks
#   unit dpdk                   unit, property and whole-worker tests; the DPDK smoke test
#   fuzz                        each target of dataplane/fuzz for FUZZ_SECONDS (15)
#   instructions                instructions per packet against bench/instructions.tsv; with --update it writes that file
#   build e2e                   the release build; scripts/e2e in fresh namespaces, or those named: check.sh e2e dnat snat
#   deny                        licences and sources of dependencies; needs cargo-deny, not part of all
# The last line is `N passed, N failed`, with every single test counted; logs of what failed are in target/check.
# shellcheck source=scripts/_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/_lib.sh"

ALL=(fmt clippy doc seam shell unit dpdk fuzz build instructions e2e)
LOGS=${CARGO_TARGET_DIR:-$ROOT/target}/check
PASSED=0
FAILED=0
SKIPPED=0
export CARGO_TERM_COLOR=never

main() {
    local jobs=("$@") job
    E2E=()
    if [[ ${1:-} == e2e ]]; then
        jobs=(e2e)
        E2E=("${@:2}")
    fi
    INSTRUCTIONS=()
    if [[ ${1:-} == instructions ]]; then
        jobs=(instructions)
        INSTRUCTIONS=("${@:2}")
    fi
    [[ $# -gt 0 ]] || jobs=(all)
    [[ ${jobs[0]} != all ]] || jobs=("${ALL[@]}")
    need_rust
    mkdir -p "$LOGS"
    cd "$ROOT"
    for job in "${jobs[@]}"; do
        [[ $(type -t "job_$job") == function ]] || die "no job $job: ${ALL[*]} deny all"
        "job_$job" || true # it has been counted
    done
    echo
    if ((SKIPPED)); then
        echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
    else
        echo "$PASSED passed, $FAILED failed"
    fi
    ((FAILED == 0))
}

job_fmt() { check fmt cargo fmt --all --check -- --color never; }
job_clippy() {
    check clippy cargo clippy --workspace --all-targets --locked -- -D warnings
    # Without DPDK too: the pure half must not lean on it.
    check clippy-pure cargo clippy -p sluice-dataplane --all-targets --locked -- -D warnings
}
# Links to private items are meant: these pages are for the engineers of this workspace, who build them with private items.
job_doc() {
    RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' check doc \
        cargo doc --workspace --no-deps --document-private-items --locked
}
job_shell() { check shell shellcheck scripts/run scripts/test scripts/bench scripts/bench-rfc2544 scripts/check-bare scripts/differential .ci/run scripts/*.sh scripts/e2e/*.sh; }
job_deny() { check deny cargo deny --offline check licenses bans sources; }

# The seam: what control imports of the dataplane is in dataplane::api.
job_seam() {
    check seam seam
}
seam() {
    ! grep -rnE '\bdataplane::' control/src --include='*.rs' | grep -vE '\bdataplane::api\b'
}

job_unit() {
    tests unit cargo test --locked -p sluice-dataplane
    tests unit-control cargo test --locked -p sluice-control -p sluice-bench -p dpdk-sys -p sluice-differential
}
job_dpdk() { tests dpdk cargo test --locked -p sluice-dataplane --features dpdk --test 'dpdk*'; }

# libFuzzer on the stable toolchain: sanitizers and coverage are the compiler's unstable options.
job_fuzz() {
    local target seconds=${FUZZ_SECONDS:-15}
    compgen -G 'dataplane/fuzz/fuzz_targets/*.rs' >/dev/null || return 0
    command -v cargo-fuzz >/dev/null || check fuzz-install cargo install cargo-fuzz --locked
    check fuzz-build fuzz build || return 0
    for target in dataplane/fuzz/fuzz_targets/*.rs; do
        target=$(basename "$target" .rs)
        check "fuzz-$target" fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=10
    done
}
# Not with the workspace's .cargo/config.toml flags, which RUSTFLAGS of cargo-fuzz would replace anyway: say them again.
fuzz() {
    (cd dataplane && RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C target-cpu=x86-64-v3 -C target-feature=+aes,+pclmulqdq" cargo fuzz "$@")
}

job_build() { check build cargo build --release --locked --workspace; }

# Its table is worth reading even where nothing is worse.
job_instructions() {
    local code=0 start=$SECONDS log=$LOGS/instructions.log
    bash scripts/_instructions.sh "${INSTRUCTIONS[@]}" >"$log" 2>&1 </dev/null || code=$?
    case $code in
    0) passed "instructions ($((SECONDS - start)) s)" ;;
    77) skipped "instructions: $(tail -n 1 "$log")" ;;
    *) failed "instructions (code $code, log in $log)" ;;
    esac
    sed 's/^/    /' "$log"
}

# Each scenario in fresh namespaces, one after the other: two busy-polling workers are all that two cores can take.
job_e2e() {
    local script name code
    [[ $(id -u) == 0 ]] || die "e2e needs root"
    find_bin
    for script in scripts/e2e/[!_]*.sh; do
        name=$(basename "$script" .sh)
        [[ ${#E2E[@]} == 0 || " ${E2E[*]} " == *" $name "* ]] || continue
        code=0
        local start=$SECONDS
        bash "$script" >"$LOGS/e2e-$name.log" 2>&1 </dev/null || code=$?
        case $code in
        0) passed "e2e $name ($((SECONDS - start)) s)" ;;
        77) skipped "e2e $name: $(tail -n 1 "$LOGS/e2e-$name.log")" ;;
        *)
            failed "e2e $name (code $code, log in $LOGS/e2e-$name.log)"
            sed 's/^/    /' "$LOGS/e2e-$name.log"
            ;;
        esac
    done
}

# check NAME COMMAND…: one job that passes or fails as a whole.
check() {
    local name=$1 code=0 start=$SECONDS
    shift
    "$@" >"$LOGS/$name.log" 2>&1 </dev/null || code=$?
    if ((code == 0)); then
        passed "$name ($((SECONDS - start)) s)"
    else
        failed "$name (code $code, log in $LOGS/$name.log)"
        tail -n 40 "$LOGS/$name.log" | sed 's/^/    /'
        return 1
    fi
}

# tests NAME CARGO-TEST…: counts every test that it ran.
tests() {
    local name=$1 code=0 start=$SECONDS p f i
    shift
    "$@" --no-fail-fast >"$LOGS/$name.log" 2>&1 </dev/null || code=$?
    read -r p f i < <(awk '/^test result:/ { p += $4; f += $6; i += $8 } END { print p + 0, f + 0, i + 0 }' "$LOGS/$name.log")
    PASSED=$((PASSED + p))
    FAILED=$((FAILED + f))
    SKIPPED=$((SKIPPED + i))
    if ((code == 0 && f == 0 && p > 0)); then
        echo "PASS $name: $p tests ($((SECONDS - start)) s)"
        return 0
    fi
    ((f > 0)) || FAILED=$((FAILED + 1)) # it did not compile, crashed, or ran nothing
    echo "FAIL $name: $p passed, $f failed (code $code, log in $LOGS/$name.log)"
    # What did not compile, and what each failed test said.
    sed -n '/^error/,/^$/p; /^failures:$/,/^test result/p' "$LOGS/$name.log" | head -n 80 | sed 's/^/    /'
}

passed() {
    echo "PASS $*"
    PASSED=$((PASSED + 1))
}
failed() {
    echo "FAIL $*"
    FAILED=$((FAILED + 1))
}
skipped() {
    echo "SKIP $*"
    SKIPPED=$((SKIPPED + 1))
}

main "$@"
