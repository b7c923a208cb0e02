# shellcheck shell=bash
# What scenarios of FTP and TFTP share. To be sourced after _init.sh; gives:
#   ftp_server NS ADDRESS     vsftpd there, anonymous, with `file` to fetch and `up/` to store into
#   ftp_transfers NS URL SERVER-NS FORM…  fetches and stores by each form, and compares to the byte
#   tftp_server NS ADDRESS    in.tftpd there
# FORM: port, eprt (the server calls the client), pasv, epsv (the client calls the server).
# shellcheck disable=SC2034 # _init.sh uses it
CONNTRACK='helpers: [{helper: ftp, proto: tcp, dport: 21}, {helper: tftp, proto: udp, dport: 69}]'

# Nothing but control connections may begin: a data connection passes only where it is RELATED.
# shellcheck disable=SC2034 # scenarios use it
POLICY='
policy:
  default: drop
  rules:
    - {name: established, state: established, action: accept}
    - {name: related, state: related, action: accept}
    - {name: ftp, proto: tcp, dport: 21, state: new, action: accept}
    - {name: tftp, proto: udp, dport: 69, state: new, action: accept}
'

ftp_server() {
    local ns=$1 address=$2 dir=$LAB_DIR/ftp-$1 family=listen=YES
    [[ $address != *:* ]] || family=$'listen=NO\nlisten_ipv6=YES'
    rm -rf "$dir"
    mkdir -p "$dir/up" "$LAB_DIR/empty"
    head -c 3000000 /dev/urandom >"$dir/file"
    chmod 755 "$LAB_DIR" "$dir"
    chmod 777 "$dir/up"
    cat >"$LAB_DIR/vsftpd-$ns.conf" <<CONF
$family
background=NO
anonymous_enable=YES
local_enable=NO
no_anon_password=YES
write_enable=YES
anon_upload_enable=YES
anon_umask=022
anon_root=$dir
secure_chroot_dir=$LAB_DIR/empty
connect_from_port_20=YES
port_enable=YES
pasv_enable=YES
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
xferlog_enable=YES
vsftpd_log_file=$LAB_DIR/vsftpd-$ns.log
dual_log_enable=NO
CONF
    spawn "$ns" "vsftpd-$ns.out" vsftpd "$LAB_DIR/vsftpd-$ns.conf"
    wait_for 10 in_ns "$ns" curl -sS --max-time 2 "$(ftp_url "$address")" -o /dev/null ||
        fail "vsftpd in $ns did not start: $(cat "$LAB_DIR/vsftpd-$ns.out")"
}

# ftp_url ADDRESS: with brackets where the address needs them.
ftp_url() {
    case $1 in
    *:*) echo "ftp://[$1]" ;;
    *) echo "ftp://$1" ;;
    esac
}

ftp_transfers() {
    local ns=$1 url=$2 server=$3 form flags before number=0
    shift 3
    local dir=$LAB_DIR/ftp-$server
    rm -f "$dir"/up/*
    head -c 1000000 /dev/urandom >"$LAB_DIR/store"
    for form in "$@"; do
        case $form in
        port) flags=(--ftp-port - --disable-eprt) ;;
        eprt) flags=(--ftp-port -) ;;
        pasv) flags=(--ftp-pasv --disable-epsv) ;;
        epsv) flags=(--ftp-pasv) ;;
        esac
        number=$((number + 1))
        before=$(metric classified_packets_total state=related)
        rm -f "$LAB_DIR/fetched"
        fetch "$ns" --max-time 20 -v "${flags[@]}" "$url/file" -o "$LAB_DIR/fetched" 2>"$LAB_DIR/curl-$form.log" ||
            fail "fetching by $form: $(cat "$LAB_DIR/curl-$form.log")"
        cmp "$LAB_DIR/fetched" "$dir/file" || fail "what was fetched by $form is not what was there"
        grep -qiE "^> ${form}( |.\$)" "$LAB_DIR/curl-$form.log" || fail "curl did not say $form: $(cat "$LAB_DIR/curl-$form.log")"
        # What curl falls back to when a form fails is no proof of it.
        grep -qE '^< (200|227|229) ' "$LAB_DIR/curl-$form.log" || fail "the server refused $form: $(cat "$LAB_DIR/curl-$form.log")"
        fetch "$ns" --max-time 20 "${flags[@]}" -T "$LAB_DIR/store" "$url/up/$form-$number" ||
            fail "storing by $form"
        cmp "$LAB_DIR/store" "$dir/up/$form-$number" || fail "what was stored by $form is not what was sent"
        assert_at_least "RELATED packets by $form" "$(metric classified_packets_total state=related)" $((before + 2))
    done
    assert_equal "expectations that are left" "$(ctl conntrack expect list | grep -c dport=)" 0
    assert_equal "INVALID packets" "$(metric classified_packets_total state=invalid)" 0
}

tftp_server() {
    local ns=$1 address=$2
    mkdir -p "$LAB_DIR/tftp-$ns"
    head -c 200000 /dev/urandom >"$LAB_DIR/tftp-$ns/file"
    chmod -R a+rX "$LAB_DIR" "$LAB_DIR/tftp-$ns"
    touch "$LAB_DIR/tftp-$ns/up"
    chmod 666 "$LAB_DIR/tftp-$ns/up"
    spawn "$ns" "tftpd-$ns.out" in.tftpd --foreground --address "$address" --user nobody --secure "$LAB_DIR/tftp-$ns"
    wait_for 10 in_ns "$ns" curl -sS --max-time 2 "tftp://$address/file" -o /dev/null ||
        fail "in.tftpd in $ns did not start: $(cat "$LAB_DIR/tftpd-$ns.out")"
}

# tftp_transfers NS URL SERVER: fetches and stores, and compares.
tftp_transfers() {
    local ns=$1 url=$2 server=$3
    local before dir=$LAB_DIR/tftp-$server
    before=$(metric classified_packets_total state=related)
    fetch "$ns" --max-time 20 "$url/file" -o "$LAB_DIR/fetched" || fail "fetching by TFTP"
    cmp "$LAB_DIR/fetched" "$dir/file" || fail "what was fetched is not what was there"
    fetch "$ns" --max-time 20 -T "$LAB_DIR/fetched" "$url/up" || fail "storing by TFTP"
    cmp "$LAB_DIR/fetched" "$dir/up" || fail "what was stored is not what was sent"
    assert_at_least "RELATED packets" "$(metric classified_packets_total state=related)" $((before + 2))
}
