-- Over how many matrices and layers is the update of each run spread, and how evenly?
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
--
-- Matrices are tensors with two axes or more. busiest_layer_ratio is the largest, over layers, of
-- (share of the changes that are in the layer) / (share of the parameters that are), quietest the
-- smallest; both are 1 if the update is spread evenly, and a run that changed one layer only has
-- quietest_layer_ratio 0. What lies in no layer (embeddings, head) does not count for the two. A
-- layer 5 of a vision tower and one of the language model are two layers.
WITH each AS (
    SELECT
        c.pair_id, tower_of(t.tensor, t.layer) AS tower, t.layer, len(t.shape) >= 2 AS matrix,
        c.numel, c.changed
    FROM counts AS c
    JOIN tensors AS t USING (pair_id, tensor_key)
    WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact'))
),
matrices AS (
    SELECT
        pair_id,
        count(*) AS matrices,
        count(*) FILTER (WHERE changed > 0) AS matrices_changed
    FROM each
    WHERE matrix
    GROUP BY pair_id
),
layers AS (
    SELECT
        pair_id, tower, layer,
        (sum(changed) / nullif(sum(sum(changed)) OVER of_pair, 0))
        / nullif(sum(numel) / sum(sum(numel)) OVER of_pair, 0) AS ratio
    FROM each
    WHERE layer IS NOT NULL
    GROUP BY pair_id, tower, layer
    WINDOW of_pair AS (PARTITION BY pair_id)
),
evenness AS (
    SELECT
        pair_id,
        count(*) AS layers,
        count(*) FILTER (WHERE ratio > 0) AS layers_changed,
        max(ratio) AS busiest_layer_ratio,
        min(ratio) AS quietest_layer_ratio
    FROM layers
    GROUP BY pair_id
)
SELECT
    r.name, r.algorithm,
    m.matrices, m.matrices_changed,
    m.matrices_changed / nullif(m.matrices, 0) AS matrices_changed_share,
    e.layers, e.layers_changed, e.busiest_layer_ratio, e.quietest_layer_ratio,
    r.pair_id
FROM runs AS r
JOIN matrices AS m USING (pair_id)
LEFT JOIN evenness AS e USING (pair_id)
ORDER BY r.name, r.pair_id;
