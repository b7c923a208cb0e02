#!/usr/bin/env bash
# The metrics page: more than thirty samples, the names of the contract, every family with help and type, no sample twice.
#   [sluiced] alone
# shellcheck source=scripts/e2e/_init.sh
source "$(dirname "$0")/_init.sh"

config <<'YAML'
interfaces:
  lan: {device: "net_tap0,iface=dlan", zone: lan, addresses: [10.10.0.1/24]}
policy:
  default: drop
  rules:
    - {name: established, state: [established, related], action: accept}
YAML
make_ns gw
start_sluiced
page=$(scrape)
assert_at_least "samples" "$(grep -c '^sluice_' <<<"$page")" 31
for name in packets_total bytes_total dropped_packets_total conntrack_entries conntrack_limit conntrack_events_total \
    classified_packets_total rule_packets_total handover_packets_total reloads_total policy_generation \
    worker_cycles_total burst_seconds packet_latency_seconds; do
    assert_match "metrics" "$page" "^# HELP sluice_$name ."
    assert_match "metrics" "$page" "^# TYPE sluice_$name (counter|gauge|histogram)$"
done
assert_equal "samples that stand there twice" "$(grep -v '^#' <<<"$page" | sed 's/ [^ ]*$//' | sort | uniq -d)" ""
assert_match "drops by reason, also those that did not happen" "$page" '^sluice_dropped_packets_total\{.*reason="ttl_expired".*\} 0$'
