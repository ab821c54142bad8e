"""Principal components against scikit-learn's."""

import numpy as np
import torch
from sklearn.decomposition import PCA

from tlx.data.images import load_rgb
from tlx.evaluation.embedding import pooled_features, principal_components
from tlx.models.folder import Architecture, SavedModel, build_classifier
from tlx.models.preprocess import Preprocess


def test_equals_scikit_learn_up_to_signs():
    features = np.random.default_rng(0).normal(size=(40, 7)) * np.arange(1, 8)
    points, explained = principal_components(features.astype(np.float32))
    reference = PCA(2).fit(features.astype(np.float32))
    np.testing.assert_allclose(
        np.abs(points), np.abs(reference.transform(features.astype(np.float32))), atol=1e-4
    )
    np.testing.assert_allclose(explained, reference.explained_variance_ratio_, atol=1e-6)


def test_equal_images_are_one_point_that_explains_nothing():
    points, explained = principal_components(np.ones((5, 3), dtype=np.float32))
    assert not points.any()
    assert explained == (0, 0)


def test_one_feature_leaves_the_second_component_empty():
    points, explained = principal_components(np.array([[0.0], [1], [2]], dtype=np.float32))
    np.testing.assert_allclose(np.abs(points), [[1, 0], [0, 0], [1, 0]], atol=1e-12)
    assert explained == (1, 0)


def test_pooled_features_are_what_average_pooling_gives_the_head(image_folder):
    torch.manual_seed(0)
    design = Architecture("squeezenet1_1", 64, 3, "avg", (), "relu", 0.0)
    preprocess = Preprocess.for_weights("squeezenet1_1", image_size=64)
    classifier = build_classifier(design).eval()
    model = SavedModel(classifier, preprocess, ("blue", "green", "red"))
    files = sorted(image_folder.rglob("*.png"))[:20]
    features = pooled_features(model, files)
    assert features.shape == (20, 512)
    inputs = preprocess.normalize(torch.stack([preprocess(load_rgb(file)) for file in files]))
    with torch.no_grad():
        logits = classifier.head.output(torch.from_numpy(features))
        torch.testing.assert_close(logits, classifier(inputs), atol=1e-4, rtol=1e-4)


def test_time_that_is_over_leaves_the_first_batch(image_folder):
    design = Architecture("squeezenet1_1", 64, 3, "avg", (), "relu", 0.0)
    preprocess = Preprocess.for_weights("squeezenet1_1", image_size=64)
    model = SavedModel(build_classifier(design).eval(), preprocess, ("a", "b", "c"))
    files = sorted(image_folder.rglob("*.png"))
    assert len(pooled_features(model, files, seconds=-1)) == 16
    assert pooled_features(model, []).shape == (0, 0)
