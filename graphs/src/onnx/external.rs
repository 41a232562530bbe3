//! The files beside a model that its weights are in.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use super::Placement;
use super::read::{MAX_BYTES, Model, OnnxError, read};
use crate::source::{SourceError, open_regular, resolve_inside, root_of};

/// Reads the model file at `path` and checks it with the files its weights are in.
///
/// # Errors
/// As [`read`] and [`check_external`]; or it is no regular file inside the bundle.
pub fn open(path: &Path) -> Result<Model, OnnxError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let real = resolve_inside(path, &root_of(folder)?)?;
    let opened = open_regular(&real)?;
    let mut bytes = vec![];
    let all = opened.file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    all.map_err(|source| OnnxError::Io { file: path.into(), source })?;
    let model = read(path, &bytes)?;
    check_external(path, &model)?;
    Ok(model)
}

/// Checks that the external data of the model at `path` are in regular files inside its folder's parent, the bundle (in a
/// Hugging Face cache, inside the repository's folder, where its links lead), and end within them.
///
/// Hard links are not refused: linked bundles are made of them, and only someone who can read a file can link to it.
///
/// # Errors
/// For the first tensor whose data are elsewhere or not all there.
pub fn check_external(path: &Path, model: &Model) -> Result<(), OnnxError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let root = root_of(folder)?;
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for tensor in &model.initializers {
        let Placement::External { location, offset, length } = &tensor.placement else { continue };
        let bytes = match sizes.get(location.as_str()) {
            Some(&bytes) => bytes,
            None => *sizes.entry(location).or_insert(size(&folder.join(location), &root)?),
        };
        let end = offset.checked_add(*length);
        if end.is_none_or(|end| end > bytes) {
            return Err(OnnxError::Wrong {
                file: path.into(),
                place: format!("initializer `{}`", crate::weights::json::shown(&tensor.name)),
                expected: format!("data within the {bytes} bytes of `{location}`"),
                found: format!("{length} bytes from {offset} on"),
            });
        }
    }
    Ok(())
}

fn size(path: &Path, root: &Path) -> Result<u64, SourceError> {
    Ok(open_regular(&resolve_inside(path, root)?)?.bytes)
}
