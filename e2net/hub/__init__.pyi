from .save import push_model, save_model, save_pretrained

__all__ = ["push_model", "save_model", "save_pretrained"]
