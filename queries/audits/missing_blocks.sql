-- Blocks of a mask are numbered 0, 1, 2, ... and all but the last hold 65,536 parameters.
--
-- Protects the join on (tensor_key, block): bit k of a block is the same parameter in every pair.
WITH numbered AS (
    SELECT
        pair_id, criterion, tensor_key, block, numel,
        row_number() OVER of_tensor - 1 AS expected_block,
        lead(block) OVER of_tensor IS NULL AS is_last
    FROM masks
    WINDOW of_tensor AS (PARTITION BY pair_id, criterion, tensor_key ORDER BY block)
)
SELECT
    CASE WHEN block <> expected_block THEN 'a block is missing or there twice'
        ELSE 'a block has the wrong length' END AS problem,
    pair_id, criterion, tensor_key, block, expected_block, numel
FROM numbered
WHERE block <> expected_block
    OR CASE WHEN is_last THEN numel NOT BETWEEN 1 AND 65536 ELSE numel <> 65536 END;
