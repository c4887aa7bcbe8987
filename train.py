"""Compose a technique, a corpus and a machine from conf/, run one stage, leave one directory. See --help."""

from omegaconf import DictConfig

from launch.cli import entrypoint


@entrypoint
def main(cfg: DictConfig) -> float | None:
    if cfg.claim is not None:
        from launch import claims

        return claims.run(cfg)
    # Torch and Lightning take seconds to import: not before the config is known to be right.
    from launch import stages

    with stages.open_run(cfg) as run:
        if cfg.stage == "predict":
            stages.predict(cfg, run)
            return None
        if cfg.stage == "compare":
            stages.compare(cfg, run)
            return None
        datamodule = stages.build_datamodule(cfg)
        if cfg.stage == "vocabulary":
            stages.vocabulary(cfg, run, datamodule)
            return None
        if getattr(datamodule, "inspect", False):
            stages.inspect_data(run, datamodule)
            return None
        model = stages.build_model(cfg, datamodule)
        trainer = stages.build_trainer(cfg, run, datamodule)
        if cfg.stage == "fit":
            stages.fit(cfg, run, trainer, model, datamodule)
        else:
            stages.evaluate(cfg, run, trainer, model, datamodule)
    return run.result(cfg.optimized_metric)


if __name__ == "__main__":
    main()
