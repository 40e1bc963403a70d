# pgbench, after which four sums must be equal; rows copied in and out, which must be the same.
seconds=$3
requests=0 mismatches=0 errors=0
note=
fail() { errors=$((errors + 1)); note="$note $1"; }
differ() { mismatches=$((mismatches + 1)); note="$note $1"; }
"$BIN/pgbench" -i -q postgres >/dev/null 2>&1 || fail "pgbench -i"
told=$("$BIN/pgbench" -n -c 4 -j 2 -T "$seconds" postgres 2>&1) || fail "pgbench"
done=$(echo "$told" | sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p')
failed=$(echo "$told" | sed -n 's/^number of failed transactions: \([0-9]*\).*/\1/p')
[ "${failed:-0}" = 0 ] || fail "$failed transactions failed"
sums=$("$BIN/psql" -Atc "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
    and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)
    and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
    and (select count(*) from pgbench_history) = ${done:-0}") || fail "psql"
[ "$sums" = t ] || differ "sums"
want=$(seq 100000 | md5sum)
got=$("$BIN/psql" -Atc "copy (select generate_series(1, 100000)) to stdout" | md5sum)
[ "$want" = "$got" ] || differ "rows out"
sum=$(seq 100000 | "$BIN/psql" -Atqc "create temp table numbers(n int)" -c "copy numbers from stdin" -c "select count(*), sum(n) from numbers")
[ "$sum" = "100000|5000050000" ] || differ "rows in: $sum"
requests=$((${done:-0} + 3))
echo "{\"requests\":$requests,\"bytes\":0,\"mismatches\":$mismatches,\"errors\":$errors,\"stalls\":0,\"notes\":[${note:+\"$note\"}]}"
