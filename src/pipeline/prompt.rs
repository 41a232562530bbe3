//! What the videos of commands that make many are of.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{Pipeline, PipelineError, Request, Start};
use crate::picture;

/// What a video is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// What is to be seen.
    pub text: String,
    /// The image it starts from (PNG, JPEG, GIF), for image-to-video models.
    pub image: Option<PathBuf>,
}

impl Pipeline {
    /// A request for `prompt` and its image, of these frames, rows and columns where they are not to be the checkpoint's; found to be
    /// one that the model can fulfil.
    ///
    /// # Errors
    /// A size the model cannot make, an image that cannot be read, none where the model needs one, or one where it takes none.
    pub fn request_of(
        &self,
        prompt: &Prompt,
        [frames, height, width]: [Option<usize>; 3],
    ) -> Result<Request, PipelineError> {
        let mut request = self.request(&prompt.text)?;
        request.frames = frames.unwrap_or(request.frames);
        request.height = height.unwrap_or(request.height);
        request.width = width.unwrap_or(request.width);
        if let Some(path) = &prompt.image {
            self.check_sides(request.height, request.width)?;
            request.start = Start::Image(picture::image(path, [request.height, request.width])?);
        }
        self.check(&request)?;
        Ok(request)
    }

    /// Find that a video can be made of each of `prompts`, before the first is; reads each image once.
    ///
    /// # Errors
    /// As [`Pipeline::request_of`].
    pub fn check_prompts(&self, prompts: &[Prompt], size: [Option<usize>; 3]) -> Result<(), PipelineError> {
        let mut images = HashSet::new();
        let mut others = prompts.iter().filter(|prompt| images.insert(&prompt.image));
        others.try_for_each(|prompt| self.request_of(prompt, size).map(drop))
    }
}
