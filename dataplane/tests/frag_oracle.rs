//! Reassembly does what a naive one does with any fragments: the oracle of the fuzz targets `reassemble_v4` and
//! `reassemble_v6`, with random input.

mod common;

use std::collections::BTreeMap;

use common::oracle::Input;
use common::reassembly::reassembles;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn ipv4_fragments_become_the_same_datagram_or_are_refused_alike(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        reassembles(false, &mut Input(&bytes));
    }

    #[test]
    fn ipv6_fragments_become_the_same_datagram_or_are_refused_alike(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        reassembles(true, &mut Input(&bytes));
    }
}

/// The oracle is worth something only where its input leads everywhere.
#[test]
fn random_input_reaches_every_outcome() {
    for v6 in [false, true] {
        let mut random = 1u64;
        let mut happened = BTreeMap::new();
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..1000)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (random >> 56) as u8
                })
                .collect();
            for (name, n) in reassembles(v6, &mut Input(&bytes)) {
                *happened.entry(name).or_insert(0) += n;
            }
        }
        let both = ["waits", "whole", "goes", "goes with others", "fragment_duplicate", "fragment_overlap"];
        let refused = ["fragment_count", "fragment_invalid"];
        let invalid: &[_] = if v6 { &["invalid", "invalid with others"] } else { &[] };
        for name in both.iter().chain(&refused).chain(invalid) {
            assert!(happened.get(name).is_some_and(|&n| n >= 20), "{name} of {happened:?}");
        }
    }
}
