// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows that a story makes.

use super::{Control, Story, play};
use crate::controls;
use crate::plan::{DiskKind, Folio, Fs, Registration, Scenario, Writer};

const SINGLE: &[Folio] = &[Folio::Single];
const PLAIN: &[DiskKind] = &[DiskKind::Plain];

/// A scenario for each of its modes, and one for each control. What they refer to lives as long as the program.
pub fn scenarios(story: Story) -> Vec<Scenario> {
    let story: &'static Story = Box::leak(Box::new(story));
    let first = &story.filesystems[..1];
    let ours = match story.registrations.as_slice() {
        [] => vec![scenario(story, Writer::Disk)],
        list => list.iter().map(|registration| scenario(story, Writer::Nic(*registration))).collect(),
    };
    let soft = story.soft_roce.iter().map(|registration| Scenario {
        filesystems: first,
        disks: PLAIN,
        core: &[],
        folios: SINGLE,
        ..scenario(story, Writer::Rxe(*registration))
    });
    let controls = story.controls.iter().filter_map(|one| Some(control(story, one, (one.id.as_deref()?, first))));
    ours.into_iter().chain(soft).chain(controls).collect()
}

fn scenario(story: &'static Story, writer: Writer) -> Scenario {
    let mode = mode(story, writer);
    let core = story.core_modes.is_empty() || story.core_modes.iter().any(|core| core == mode);
    Scenario {
        id: &story.id,
        mode,
        writer,
        title: &story.title,
        filesystems: &story.filesystems,
        disks: &story.disks,
        core: if core { &story.core } else { &[] },
        control: None,
        folios: &story.folios,
        core_folios: &story.core_folios,
        named: story.named,
        story: Some(story),
        run: play::run,
    }
}

fn control(story: &'static Story, control: &'static Control, (id, first): (&'static str, &'static [Fs])) -> Scenario {
    let registration = control.registration.or(story.registrations.first().copied());
    Scenario {
        id,
        title: &control.title,
        filesystems: first,
        disks: &story.disks[..1],
        core: if control.core { first } else { &[] },
        control: Some(controls::Control { plant: control.plant, checks: &control.checks }),
        folios: SINGLE,
        core_folios: SINGLE,
        ..scenario(story, registration.map_or(Writer::Disk, Writer::Nic))
    }
}

/// "pinned", "dio", "disk"; with parameters their values.
fn mode(story: &'static Story, writer: Writer) -> &'static str {
    let own = match writer {
        Writer::Disk => story.mode.as_deref().unwrap_or("disk"),
        Writer::Nic(registration) => registration.name(),
        Writer::Rxe(Registration::Pinned) => "rxe-pinned",
        Writer::Rxe(Registration::PinnedRo) => "rxe-ro",
        Writer::Rxe(Registration::Odp) => "rxe-odp",
        Writer::Rxe(Registration::OdpRo) => "rxe-odp-ro",
    };
    match (story.variant.as_str(), story.registrations.is_empty() && story.mode.is_none()) {
        ("", _) => own,
        (variant, true) => variant,
        (variant, false) => Box::leak(format!("{own}+{variant}").into_boxed_str()),
    }
}
