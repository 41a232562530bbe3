//! What `float16` does not hold: values that stay in `float32`, and numbers that nothing can be done about.

use std::collections::BTreeMap;
use std::path::Path;

use cogvx_calibration::islands::Islands;
use cogvx_calibration::table::Table;
use cogvx_graphs::pass;
use cogvx_graphs::{Graph, Problem};

use super::{Component, ExportError};

/// The largest number of `float16`.
pub(super) const LARGEST: f32 = 65_504.0;

/// A component's graphs with their names.
type Graphs = Vec<(&'static str, Graph)>;

/// The graphs of a component that computes in `float16`, with what `table` has seen to be too large for that kept in
/// `float32`; and those values with their largest magnitudes. A component that the table has not seen stays as it is.
///
/// # Errors
/// The table is of another model, or a cache would overflow and that is not `allowed`.
pub(super) fn keep_large_wide(
    component: Component,
    graphs: Graphs,
    (table, path): (&Table, &Path),
    allowed: bool,
) -> Result<(Graphs, BTreeMap<String, f32>), ExportError> {
    let name = component.name();
    let mut found = BTreeMap::new();
    if !table.values.keys().any(|value| value.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'))) {
        return Ok((graphs, found));
    }
    let mut widened = vec![];
    for (file, graph) in graphs {
        let mut islands = Islands::new(&table.values, name);
        let failed = |mut problems: Vec<Problem>| ExportError::Lower {
            graph: format!("{name}/{file}"),
            problem: problems.swap_remove(0),
        };
        widened.push((file, pass::run(&mut islands, &graph).map_err(failed)?));
        if let Some(value) = islands.unknown() {
            return Err(table.lacks_value(path, value).into());
        }
        let overflow = islands.caches().iter().find(|(_, magnitude)| **magnitude > LARGEST && !allowed);
        if let Some((cache, &magnitude)) = overflow {
            return Err(ExportError::Overflow { table: path.into(), value: format!("{name}/{cache}"), magnitude });
        }
        found.extend(islands.found().clone());
    }
    Ok((widened, found))
}

/// Whether one of these `float16` numbers is infinite.
pub(super) fn overflowed(bytes: &[u8]) -> bool {
    bytes.as_chunks().0.iter().any(|pair| u16::from_le_bytes(*pair) & 0x7fff == 0x7c00)
}
