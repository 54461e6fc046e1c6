//! Plans of published sizes, from files that have nothing where the weights are.

use super::{Header, Options};
use crate::engine::{Device, Engine, EngineError, EngineOptions, MemoryPlan};
use crate::format::gguf::{Existing, partial_path};
use crate::model::Model;
use std::fs::{self, OpenOptions};
use tempfile::TempDir;

/// A model of the size `shape` whose weights are a hole in its file, which nobody looks at.
fn outline(shape: &str, folder: &TempDir) -> Model {
    let header = Header::new(shape, &Options { dtype: None, layers: None, seed: 0 }).unwrap();
    let path = folder.path().join("whole.gguf");
    let mut writer = header.write(&path, Existing::Refuse).unwrap();
    // More than what is held back, so that the header is in the file.
    writer.write(&vec![0; 2 << 20]).unwrap();
    fs::copy(partial_path(&path), &path).unwrap();
    let bytes: u64 = header.tensors.iter().map(|t| t.byte_len().unwrap() as u64 + 32).sum();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes + (2 << 20)).unwrap();
    Model::open(&path).unwrap()
}

#[test]
fn gpt_oss_20b_fits_on_cards_of_16_and_24_gib() {
    let folder = tempfile::tempdir().unwrap();
    let model = outline("gpt-oss-20b", &folder);
    let device = Device::Cuda(0);
    let options = |context| EngineOptions {
        device,
        context: Some(context),
        chunk: device.chunk(),
        ..EngineOptions::default()
    };
    for (gibibytes, context) in [(16, 8192), (24, 65_536)] {
        let plan = MemoryPlan::new(&model, &options(context)).unwrap();
        println!("{context} positions: {plan:?}, {:.3} GiB", plan.total() as f64 / 2f64.powi(30));
        assert!(plan.weights > 12_000_000_000, "{plan:?}");
        // Beside the driver's own some hundred megabytes.
        assert!(plan.total() + (512 << 20) < gibibytes << 30, "{context} positions: {plan:?}");
        // One byte too few, and it is refused with the plan before a device is looked for.
        let limit = plan.total() - 1;
        let limited = EngineOptions { memory_limit: Some(limit), ..options(context) };
        match Engine::new(&model, &limited, &mut |_, _| {}).err() {
            Some(EngineError::MemoryLimit { limit: told, plan: planned, .. }) => {
                assert_eq!((told, planned), (limit, plan));
            }
            other => panic!("{other:?}"),
        }
    }
}
