// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stories of this program: those in stories/, which are rows like any other.

use std::sync::LazyLock;

use super::{Story, rows};
use crate::plan::Scenario;

/// Every one: the file's name and its text, in the order of the rows.
pub const TEXTS: &[(&str, &str)] = &[
    ("h12.toml", include_str!("../../../stories/h12.toml")),
    ("h12-held.toml", include_str!("../../../stories/h12-held.toml")),
    ("h03.toml", include_str!("../../../stories/h03.toml")),
    ("h04.toml", include_str!("../../../stories/h04.toml")),
    ("h10-cpu.toml", include_str!("../../../stories/h10-cpu.toml")),
    ("h10-cpu-late.toml", include_str!("../../../stories/h10-cpu-late.toml")),
    ("h01.toml", include_str!("../../../stories/h01.toml")),
    ("h01-ro.toml", include_str!("../../../stories/h01-ro.toml")),
    ("h13.toml", include_str!("../../../stories/h13.toml")),
    ("h13-ro.toml", include_str!("../../../stories/h13-ro.toml")),
    ("h03-neighbour.toml", include_str!("../../../stories/h03-neighbour.toml")),
    ("h04-neighbours.toml", include_str!("../../../stories/h04-neighbours.toml")),
    ("h04-punch.toml", include_str!("../../../stories/h04-punch.toml")),
    ("h04-write.toml", include_str!("../../../stories/h04-write.toml")),
    ("h04-process.toml", include_str!("../../../stories/h04-process.toml")),
    ("h04-race.toml", include_str!("../../../stories/h04-race.toml")),
    ("h12-write.toml", include_str!("../../../stories/h12-write.toml")),
    ("h12-punch.toml", include_str!("../../../stories/h12-punch.toml")),
    ("h04-write-race.toml", include_str!("../../../stories/h04-write-race.toml")),
    ("h04-punch-race.toml", include_str!("../../../stories/h04-punch-race.toml")),
    ("h13-neighbour.toml", include_str!("../../../stories/h13-neighbour.toml")),
    ("h14-punch.toml", include_str!("../../../stories/h14-punch.toml")),
    ("h14-truncate.toml", include_str!("../../../stories/h14-truncate.toml")),
    ("h15.toml", include_str!("../../../stories/h15.toml")),
    ("h15-ro.toml", include_str!("../../../stories/h15-ro.toml")),
    ("h15-truncate.toml", include_str!("../../../stories/h15-truncate.toml")),
    ("h16.toml", include_str!("../../../stories/h16.toml")),
    ("h16-map.toml", include_str!("../../../stories/h16-map.toml")),
    ("h16-unmap.toml", include_str!("../../../stories/h16-unmap.toml")),
    ("h16-move.toml", include_str!("../../../stories/h16-move.toml")),
    ("h17.toml", include_str!("../../../stories/h17.toml")),
    ("h17-mapping.toml", include_str!("../../../stories/h17-mapping.toml")),
    ("h33.toml", include_str!("../../../stories/h33.toml")),
    ("h35.toml", include_str!("../../../stories/h35.toml")),
    ("h07-cpu.toml", include_str!("../../../stories/h07-cpu.toml")),
    ("h07.toml", include_str!("../../../stories/h07.toml")),
    ("h07-dio.toml", include_str!("../../../stories/h07-dio.toml")),
    ("h08-cpu.toml", include_str!("../../../stories/h08-cpu.toml")),
    ("h08.toml", include_str!("../../../stories/h08.toml")),
    ("h08-dio.toml", include_str!("../../../stories/h08-dio.toml")),
    ("h08-parity-cpu.toml", include_str!("../../../stories/h08-parity-cpu.toml")),
    ("h08-parity.toml", include_str!("../../../stories/h08-parity.toml")),
    ("h08-parity-dio.toml", include_str!("../../../stories/h08-parity-dio.toml")),
    ("h08-copy-cpu.toml", include_str!("../../../stories/h08-copy-cpu.toml")),
    ("h08-copy.toml", include_str!("../../../stories/h08-copy.toml")),
    ("h08-copy-dio.toml", include_str!("../../../stories/h08-copy-dio.toml")),
    ("h10-disks.toml", include_str!("../../../stories/h10-disks.toml")),
    ("h11-cpu.toml", include_str!("../../../stories/h11-cpu.toml")),
    ("h11.toml", include_str!("../../../stories/h11.toml")),
    ("h20.toml", include_str!("../../../stories/h20.toml")),
    ("h20-dio.toml", include_str!("../../../stories/h20-dio.toml")),
    ("h21.toml", include_str!("../../../stories/h21.toml")),
    ("h21-truncate.toml", include_str!("../../../stories/h21-truncate.toml")),
    ("h21-signal.toml", include_str!("../../../stories/h21-signal.toml")),
    ("h22.toml", include_str!("../../../stories/h22.toml")),
    ("h22-truncate.toml", include_str!("../../../stories/h22-truncate.toml")),
    ("h11-raid-cpu.toml", include_str!("../../../stories/h11-raid-cpu.toml")),
    ("h11-raid.toml", include_str!("../../../stories/h11-raid.toml")),
    ("h12-users.toml", include_str!("../../../stories/h12-users.toml")),
    ("h04-users.toml", include_str!("../../../stories/h04-users.toml")),
    ("h03-users.toml", include_str!("../../../stories/h03-users.toml")),
    ("h01-raw.toml", include_str!("../../../stories/h01-raw.toml")),
    ("h12-raw.toml", include_str!("../../../stories/h12-raw.toml")),
    ("h01-uring.toml", include_str!("../../../stories/h01-uring.toml")),
    ("h01-xdp.toml", include_str!("../../../stories/h01-xdp.toml")),
    ("h13-pipe.toml", include_str!("../../../stories/h13-pipe.toml")),
    ("h14-pipe.toml", include_str!("../../../stories/h14-pipe.toml")),
    ("h12-vm-write.toml", include_str!("../../../stories/h12-vm-write.toml")),
    ("h01-race.toml", include_str!("../../../stories/h01-race.toml")),
    ("h12-race.toml", include_str!("../../../stories/h12-race.toml")),
];

static SCENARIOS: LazyLock<Vec<Scenario>> = LazyLock::new(|| {
    let stories = TEXTS.iter().flat_map(|(name, text)| match Story::parse(text) {
        Ok(stories) => stories,
        // A test reads every one of them.
        Err(mistake) => {
            log::error!("the story {name} of this program cannot be read: {mistake}");
            Vec::new()
        }
    });
    stories.flat_map(rows::scenarios).collect()
});

/// Their scenarios.
pub fn scenarios() -> &'static [Scenario] {
    &SCENARIOS
}
