;; The arithmetic of a map's tiles, four numbers at a time. products.ts owns the memory and knows where things lie in it.
;;
;; A score is in bits: its queries carry the factor 1 / ln 2, so that a weight is 2^(score - log-sum-exp). A power of two
;; splits exactly into a whole number, which goes into the exponent, and a rest between -1/2 and 1/2.
(module
  (import "page" "memory" (memory 1))

  ;; Inner products of four queries with `groups` times eight keys.
  ;;   queries: [dims, 4], keys: [groups, dims, 8], out: four rows of numbers, `stride` bytes apart
  ;; Eight vectors of sums, two of keys and one query fit the sixteen registers of the smallest processors.
  (func (export "multiply")
    (param $queries i32) (param $keys i32) (param $dims i32) (param $groups i32) (param $out i32) (param $stride i32)
    (local $query i32) (local $end i32) (local $row i32)
    (local $near v128) (local $far v128) (local $one v128)
    (local $a0 v128) (local $a1 v128) (local $b0 v128) (local $b1 v128)
    (local $c0 v128) (local $c1 v128) (local $d0 v128) (local $d1 v128)
    (local.set $end (i32.add (local.get $queries) (i32.shl (local.get $dims) (i32.const 4))))
    (block $done
      (loop $group
        (br_if $done (i32.eqz (local.get $groups)))
        (local.set $a0 (v128.const f32x4 0 0 0 0)) (local.set $a1 (v128.const f32x4 0 0 0 0))
        (local.set $b0 (v128.const f32x4 0 0 0 0)) (local.set $b1 (v128.const f32x4 0 0 0 0))
        (local.set $c0 (v128.const f32x4 0 0 0 0)) (local.set $c1 (v128.const f32x4 0 0 0 0))
        (local.set $d0 (v128.const f32x4 0 0 0 0)) (local.set $d1 (v128.const f32x4 0 0 0 0))
        (local.set $query (local.get $queries))
        (block $summed
          (loop $dim
            (br_if $summed (i32.eq (local.get $query) (local.get $end)))
            (local.set $near (v128.load (local.get $keys)))
            (local.set $far (v128.load offset=16 (local.get $keys)))
            (local.set $one (v128.load32_splat (local.get $query)))
            (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul (local.get $one) (local.get $near))))
            (local.set $a1 (f32x4.add (local.get $a1) (f32x4.mul (local.get $one) (local.get $far))))
            (local.set $one (v128.load32_splat offset=4 (local.get $query)))
            (local.set $b0 (f32x4.add (local.get $b0) (f32x4.mul (local.get $one) (local.get $near))))
            (local.set $b1 (f32x4.add (local.get $b1) (f32x4.mul (local.get $one) (local.get $far))))
            (local.set $one (v128.load32_splat offset=8 (local.get $query)))
            (local.set $c0 (f32x4.add (local.get $c0) (f32x4.mul (local.get $one) (local.get $near))))
            (local.set $c1 (f32x4.add (local.get $c1) (f32x4.mul (local.get $one) (local.get $far))))
            (local.set $one (v128.load32_splat offset=12 (local.get $query)))
            (local.set $d0 (f32x4.add (local.get $d0) (f32x4.mul (local.get $one) (local.get $near))))
            (local.set $d1 (f32x4.add (local.get $d1) (f32x4.mul (local.get $one) (local.get $far))))
            (local.set $query (i32.add (local.get $query) (i32.const 16)))
            (local.set $keys (i32.add (local.get $keys) (i32.const 32)))
            (br $dim)))
        (v128.store (local.get $out) (local.get $a0))
        (v128.store offset=16 (local.get $out) (local.get $a1))
        (local.set $row (i32.add (local.get $out) (local.get $stride)))
        (v128.store (local.get $row) (local.get $b0))
        (v128.store offset=16 (local.get $row) (local.get $b1))
        (local.set $row (i32.add (local.get $row) (local.get $stride)))
        (v128.store (local.get $row) (local.get $c0))
        (v128.store offset=16 (local.get $row) (local.get $c1))
        (local.set $row (i32.add (local.get $row) (local.get $stride)))
        (v128.store (local.get $row) (local.get $d0))
        (v128.store offset=16 (local.get $row) (local.get $d1))
        (local.set $out (i32.add (local.get $out) (i32.const 32)))
        (local.set $groups (i32.sub (local.get $groups) (i32.const 1)))
        (br $group))))

  ;; 2^x in each lane, within 1e-7 of itself; 0 below -126, where single precision ends.
  ;; The rest's power is a polynomial of degree 7 whose largest relative error is 5e-11.
  (func $power (param $x v128) (result v128)
    (local $whole v128) (local $rest v128) (local $sum v128)
    (local.set $whole (f32x4.nearest (local.get $x)))
    (local.set $rest (f32x4.sub (local.get $x) (local.get $whole)))
    (local.set $sum (f32x4.add (f32x4.mul (local.get $rest)
      (v128.const f32x4 1.5196156709862407e-05 1.5196156709862407e-05 1.5196156709862407e-05 1.5196156709862407e-05))
      (v128.const f32x4 0.00015466756303794682 0.00015466756303794682 0.00015466756303794682 0.00015466756303794682)))
    (local.set $sum (f32x4.add (f32x4.mul (local.get $sum) (local.get $rest))
      (v128.const f32x4 0.0013333935057744384 0.0013333935057744384 0.0013333935057744384 0.0013333935057744384)))
    (local.set $sum (f32x4.add (f32x4.mul (local.get $sum) (local.get $rest))
      (v128.const f32x4 0.009618038311600685 0.009618038311600685 0.009618038311600685 0.009618038311600685)))
    (local.set $sum (f32x4.add (f32x4.mul (local.get $sum) (local.get $rest))
      (v128.const f32x4 0.055504102259874344 0.055504102259874344 0.055504102259874344 0.055504102259874344)))
    (local.set $sum (f32x4.add (f32x4.mul (local.get $sum) (local.get $rest))
      (v128.const f32x4 0.24022650718688965 0.24022650718688965 0.24022650718688965 0.24022650718688965)))
    (local.set $sum (f32x4.add (f32x4.mul (local.get $sum) (local.get $rest))
      (v128.const f32x4 0.6931471824645996 0.6931471824645996 0.6931471824645996 0.6931471824645996)))
    (local.set $sum (f32x4.add (f32x4.mul (local.get $sum) (local.get $rest)) (v128.const f32x4 1 1 1 1)))
    (v128.and
      (f32x4.gt (local.get $x) (v128.const f32x4 -126 -126 -126 -126))
      (i32x4.add (local.get $sum) (i32x4.shl (i32x4.trunc_sat_f32x4_s (local.get $whole)) (i32.const 23)))))

  ;; Takes 2^(score - total) of `count` scores, a multiple of four, into the numbers at `sums`: added, or where `largest`
  ;; is not 0 the larger of both.
  (func (export "fold")
    (param $scores i32) (param $sums i32) (param $count i32) (param $total f32) (param $largest i32)
    (local $end i32) (local $lse v128) (local $weight v128)
    (local.set $end (i32.add (local.get $scores) (i32.shl (local.get $count) (i32.const 2))))
    (local.set $lse (f32x4.splat (local.get $total)))
    (block $done
      (loop $next
        (br_if $done (i32.eq (local.get $scores) (local.get $end)))
        (local.set $weight (call $power (f32x4.sub (v128.load (local.get $scores)) (local.get $lse))))
        (v128.store (local.get $sums)
          (if (result v128) (local.get $largest)
            (then (f32x4.pmax (v128.load (local.get $sums)) (local.get $weight)))
            (else (f32x4.add (v128.load (local.get $sums)) (local.get $weight)))))
        (local.set $scores (i32.add (local.get $scores) (i32.const 16)))
        (local.set $sums (i32.add (local.get $sums) (i32.const 16)))
        (br $next)))))
