# Asks for all files on one connection, and has all of them echoed; compares every byte.
files=$1 dir=$2 seconds=$3 url=$4
out=$dir/curl
mkdir -p "$out"
: >"$dir/get.cfg"
: >"$dir/post.cfg"
for name in $(ls "$files"); do
    printf 'url = "%s/f/%s"\noutput = "%s/f-%s"\n' "$url" "$name" "$out" "$name" >>"$dir/get.cfg"
    printf 'url = "%s/c/%s"\noutput = "%s/c-%s"\n' "$url" "$name" "$out" "$name" >>"$dir/get.cfg"
    printf 'url = "%s/echo"\ndata-binary = "@%s/%s"\noutput = "%s/e-%s"\nnext\n' "$url" "$files" "$name" "$out" "$name" >>"$dir/post.cfg"
done
sed -i '$d' "$dir/post.cfg"
requests=0 mismatches=0 errors=0
end=$(($(date +%s) + seconds))
while [ "$(date +%s)" -lt "$end" ]; do
    for what in get post; do
        curl -sSf --max-time 30 --config "$dir/$what.cfg" || errors=$((errors + 1))
    done
    for name in $(ls "$files"); do
        for kind in f c e; do
            requests=$((requests + 1))
            cmp -s "$files/$name" "$out/$kind-$name" || mismatches=$((mismatches + 1))
        done
    done
    rm -f "$out"/*
done
echo "{\"requests\":$requests,\"bytes\":0,\"mismatches\":$mismatches,\"errors\":$errors,\"stalls\":0,\"notes\":[]}"
