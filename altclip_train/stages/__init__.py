"""The two training stages, as Lightning modules chosen by Hydra."""

from altclip_train.stages.contrastive import ContrastiveLearning
from altclip_train.stages.teacher import TeacherLearning

__all__ = ["ContrastiveLearning", "TeacherLearning"]
