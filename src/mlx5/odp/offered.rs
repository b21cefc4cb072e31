// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which access of which service may wait for a page: the ODP capabilities in force, as SET_HCA_CAP left them (contract 5.4).

use std::sync::atomic::{AtomicU32, Ordering};

use mlx5_spec::bits::Field;
use mlx5_spec::caps::odp_caps;
use mlx5_spec::qp::service_type;

/// The words of the capability structure, and whose they are. QP0, QP1 and UMR queue pairs have none.
const WORDS: [(Field, u32); 5] = [
    (odp_caps::RC_ODP_CAPS, service_type::RC),
    (odp_caps::UC_ODP_CAPS, service_type::UC),
    (odp_caps::UD_ODP_CAPS, service_type::UD),
    (odp_caps::XRC_ODP_CAPS, service_type::XRC),
    (odp_caps::DC_ODP_CAPS, service_type::DCI),
];

/// The words in force. Commands and resets write them, engines read them.
#[derive(Debug, Default)]
pub struct Offered([AtomicU32; 5]);

impl Offered {
    /// Takes the words of a capability structure.
    pub fn put(&self, structure: &[u8]) {
        for (word, (field, _)) in self.0.iter().zip(WORDS) {
            word.store(field.get(structure), Ordering::Relaxed);
        }
    }

    /// Whether `access` (`spec::caps::odp_transport`) of `service` may wait.
    pub fn allows(&self, service: u32, access: u32) -> bool {
        let word = self.0.iter().zip(WORDS).find(|(_, (_, of))| *of == service);
        word.is_some_and(|(word, _)| word.load(Ordering::Relaxed) & access != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx5_spec::caps::{CAP_SIZE, odp_transport};

    #[test]
    fn each_service_has_its_own_word_and_some_have_none() {
        let offered = Offered::default();
        for (field, of) in WORDS {
            let mut structure = [0; CAP_SIZE];
            field.set(&mut structure, odp_transport::READ);
            offered.put(&structure);
            for service in 0..16 {
                assert_eq!(offered.allows(service, odp_transport::READ), service == of, "{service} of {of}");
                assert!(!offered.allows(service, odp_transport::WRITE));
            }
        }
        offered.put(&[]);
        assert!((0..16).all(|service| !offered.allows(service, u32::MAX)), "no structure offers nothing");
    }
}
