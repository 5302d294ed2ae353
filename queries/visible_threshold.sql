-- Which steps can a tolerance see at all, by the binary exponent of the base weight?
--
-- tolerance = abs:1e-5: an abs criterion of which the pairs keep masks, to hold against exact
-- pair = *: name or id of one pair, or * for every pair
--
-- One row a pair, comparison dtype and exponent: base weights w with 2^exponent <= |w| <
-- 2^(exponent + 1), in the lowest stratum subnormals and zero. ulp = 2^(exponent - mantissa bits),
-- 2^(exponent - 7) in bf16, is the distance to the next number away from zero.
-- smallest_visible_ulps is the smallest whole number of such steps beyond the tolerance (null in
-- the lowest stratum), and one_ulp_visible says whether one is enough: under abs:1e-5 in bf16 from
-- |w| = 2^-9 on. Below that threshold a parameter may change and the tolerance does not see it.
-- Densities are changed / all in the stratum.
WITH formats(compare_dtype, mantissa_bits, bias, highest) AS (
    VALUES
        ('F64', 52, 1023, 1023), ('F32', 23, 127, 127), ('F16', 10, 15, 15), ('BF16', 7, 127, 127),
        ('F8_E4M3', 3, 7, 8), ('F8_E5M2', 2, 15, 15)
),
asked AS (
    SELECT counted(coalesce(getvariable('tolerance'), 'abs:1e-5')) AS tolerance
),
limits AS (
    SELECT
        tolerance,
        CASE
            WHEN starts_with(tolerance, 'abs:') THEN substr(tolerance, 5)::DOUBLE
            ELSE error('tolerance ' || tolerance || ' is not abs:NUMBER')
        END AS tolerated
    FROM asked
),
densities AS (
    SELECT
        s.pair_id, t.compare_dtype, s.exponent,
        sum(s.numel) FILTER (s.criterion = 'exact')::BIGINT AS numel,
        sum(s.changed) FILTER (s.criterion = 'exact')::BIGINT AS changed_exact,
        sum(s.changed) FILTER (s.criterion <> 'exact')::BIGINT AS changed_visible
    FROM strata AS s
    JOIN tensors AS t ON t.pair_id = s.pair_id AND t.tensor_key = s.tensor_key
    WHERE s.criterion IN ('exact', (SELECT tolerance FROM asked))
    GROUP BY s.pair_id, t.compare_dtype, s.exponent
),
steps_of_strata AS (
    SELECT
        d.*, l.tolerated,
        CASE WHEN d.exponent <= f.highest
            THEN 2.0::DOUBLE ** (greatest(d.exponent, 1 - f.bias) - f.mantissa_bits)
        END AS ulp,
        d.exponent < 1 - f.bias AS lowest
    FROM densities AS d
    CROSS JOIN limits AS l
    LEFT JOIN formats AS f USING (compare_dtype)
)
SELECT
    p.name, s.compare_dtype, s.exponent, s.numel, s.changed_exact, s.changed_visible,
    density(s.changed_exact, s.numel) AS density_exact,
    density(s.changed_visible, s.numel) AS density_visible,
    s.ulp,
    CASE WHEN NOT s.lowest THEN floor(s.tolerated / s.ulp) + 1 END AS smallest_visible_ulps,
    (floor(s.tolerated / s.ulp) + 1) * s.ulp AS smallest_visible_step,
    s.ulp > s.tolerated AS one_ulp_visible,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN steps_of_strata AS s USING (pair_id)
ORDER BY p.name, p.pair_id, s.compare_dtype, s.exponent DESC;
