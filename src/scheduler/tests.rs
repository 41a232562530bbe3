use super::*;

fn config(json: &str) -> SchedulerConfig {
    SchedulerConfig::from_json(json).expect("valid settings")
}

#[test]
fn bad_settings_are_refused_by_name() {
    for (json, wanted) in [
        (r#"{"num_train_timesteps": 0}"#, "`num_train_timesteps`: expected 1 to 100000, found 0"),
        (r#"{"num_train_timesteps": 100001}"#, "found 100001"),
        (r#"{"num_train_timesteps": -5}"#, "invalid value: integer `-5`"),
        (r#"{"num_train_timesteps": NaN}"#, "expected value"),
        (r#"{"beta_start": 1e999}"#, "number out of range"),
        (r#"{"beta_end": 2.0}"#, "`beta_end`: expected a variance below 1, found 2"),
        (r#"{"snr_shift_scale": 0}"#, "`snr_shift_scale`: expected a positive number, found 0"),
        (r#"{"steps_offset": 1000}"#, "`steps_offset`: expected less than 1000, found 1000"),
        (
            r#"{"prediction_type": "flow"}"#,
            "unknown variant `flow`, expected one of `epsilon`, `sample`, `v_prediction`",
        ),
        (r#"{"beta_schedule": "sigmoid"}"#, "expected one of `linear`, `scaled_linear`, `squaredcos_cap_v2`"),
        (r#"{"timestep_spacing": "karras"}"#, "expected one of `linspace`, `leading`, `trailing`"),
        (r#"{"trained_betas": [0.1]}"#, "`trained_betas`: expected 1000 values, found 1"),
        (r#"{"num_train_timesteps": 1, "trained_betas": [-0.5]}"#, "found -0.5"),
        ("[]", "scheduler configuration: "),
        ("", "scheduler configuration: "),
    ] {
        let message = SchedulerConfig::from_json(json).expect_err(json).to_string();
        assert!(message.contains(wanted), "{json}: expected {wanted:?}, found {message:?}");
    }
}

#[test]
fn the_class_decides_the_sampler_and_another_class_is_named() {
    assert_eq!(config(r#"{"_class_name": "CogVideoXDPMScheduler"}"#).kind().ok(), Some(Kind::Dpm));
    let message = config(r#"{"_class_name": "EulerDiscreteScheduler"}"#).kind().expect_err("unknown").to_string();
    assert!(message.contains("found `EulerDiscreteScheduler`"), "{message}");
}

#[test]
fn steps_outside_the_schedule_are_refused() {
    let config = config(r#"{"timestep_spacing": "trailing"}"#);
    for steps in [0, 1001, usize::MAX] {
        let message = Sampler::new(&config, Kind::Ddim, steps).expect_err("refused").to_string();
        assert!(message.contains("expected 1 to 1000"), "{message}");
    }
    let offset = SchedulerConfig { steps_offset: 1, timestep_spacing: Spacing::Leading, ..config };
    let message = offset.timesteps(1000).expect_err("refused").to_string();
    assert!(message.contains("timestep of step 0: expected 0 to 999, found 1000"), "{message}");
}

#[test]
fn trailing_spacing_gives_as_many_steps_as_asked_for_and_ends_inside_the_schedule() {
    let config = config(r#"{"timestep_spacing": "trailing"}"#);
    for steps in 1..=1000 {
        let timesteps = config.timesteps(steps).expect("valid steps");
        assert_eq!(timesteps.len(), steps);
        assert!(timesteps.is_sorted_by(|a, b| a > b) && timesteps[0] == 999, "{steps}: {timesteps:?}");
    }
}

#[test]
fn noise_prediction_from_pure_noise_is_refused() {
    let config = config(r#"{"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#);
    let message = Sampler::new(&config, Kind::Ddim, 10).expect_err("refused").to_string();
    assert!(message.starts_with("step 0 at timestep 999: expected finite factors"), "{message}");
}

#[test]
fn a_schedule_of_one_timestep_has_no_zero_signal_form() {
    let json = r#"{"num_train_timesteps": 1, "rescale_betas_zero_snr": true}"#;
    assert!(Schedule::new(&config(json)).expect_err("refused").to_string().contains("found NaN"));
}

#[test]
fn dpm_draws_twice_where_it_looks_back_and_ddim_never_draws() {
    let config = config(r#"{"prediction_type": "v_prediction", "timestep_spacing": "trailing"}"#);
    let draws =
        |kind| Sampler::new(&config, kind, 4).expect("valid").steps().iter().map(|f| f.draws).collect::<Vec<_>>();
    assert_eq!(draws(Kind::Dpm), [1, 2, 2, 1]);
    assert_eq!(draws(Kind::Ddim), [0, 0, 0, 0]);
}

#[test]
fn steps_out_of_order_or_of_another_size_leave_the_sample_alone() {
    let config = config(r#"{"prediction_type": "v_prediction"}"#);
    let mut sampler = Sampler::new(&config, Kind::Dpm, 3).expect("valid");
    let mut rng = TorchGenerator::new(0);
    let mut sample = vec![1.0; 4];
    let message = sampler.step(1, &[0.0; 4], &mut sample, &mut rng).expect_err("refused").to_string();
    assert_eq!(message, "step: expected 0, found 1");
    let message = sampler.step(0, &[0.0; 3], &mut sample, &mut rng).expect_err("refused").to_string();
    assert_eq!(message, "model output: expected 4 values, found 3");
    assert_eq!(sample, [1.0; 4]);
    sampler.step(0, &[0.0; 4], &mut sample, &mut rng).expect("a step in order");
    assert!(sampler.step(1, &[0.0; 2], &mut [0.0; 2], &mut rng).is_err());
    sampler.step(0, &[0.0; 2], &mut [0.0; 2], &mut rng).expect("step 0 starts again");
}

#[test]
fn a_file_that_is_not_a_configuration_is_named() {
    let message = SchedulerConfig::open("no/scheduler_config.json".as_ref()).expect_err("refused").to_string();
    assert_eq!(message, "`no/scheduler_config.json`: expected a file, found nothing");
}

#[test]
fn a_file_of_a_terabyte_is_refused_unread() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 40).expect("a sparse file");
    let message = SchedulerConfig::open(file.path()).expect_err("refused").to_string();
    assert!(message.ends_with("`: expected at most 8388608 bytes, found 1099511627776"), "{message}");
}

#[test]
fn guidance_of_one_is_the_text_output() {
    assert_eq!(guide(&[1.0, 2.0], &[3.0, -2.0], 1.0), [3.0, -2.0]);
    assert_eq!(guide(&[1.0], &[3.0], 6.0), [13.0]);
}
