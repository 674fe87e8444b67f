"""A ruleset in the syntax of nft(8): for `embargo export nft`, and to be compared with golden files."""

import ipaddress

from embargo.firewall import table
from embargo.firewall.ruleset import LOG_RATE, SNAPLEN


def render(ruleset: table.Ruleset, *, elements: bool = True) -> str:
    """The table in the syntax of nft(8), in a fixed order. Without `elements` their number stands instead."""
    out = [f"table inet {ruleset.table} {{"]
    out += [f"\tcounter {name} {{\n\t}}" for name in ruleset.counters]
    for each in ruleset.sets:
        out += ["", f"\t{'map' if each.vmap else 'set'} {each.name} {{"]
        out.append(f"\t\ttype {each.type}{' : verdict' if each.vmap else ''}")
        flags = [word for word, on in (("interval", each.interval), ("timeout", each.timeout)) if on]
        out += [f"\t\tflags {','.join(flags)}"] if flags else []
        shown = _elements(each)
        if shown and elements:
            out.append("\t\telements = { " + ",\n\t\t\t     ".join(shown) + " }")
        elif shown:
            out.append(f"\t\t# {len(shown)} elements")
        out.append("\t}")
    for chain in ruleset.chains:
        out += ["", f"\tchain {chain.name} {{"]
        if chain.hook:
            kind, hook, priority = chain.hook
            out.append(f"\t\ttype {kind} hook {hook} priority {priority}; policy accept;")
        out += ["\t\t" + _rule_text(rule) for rule in chain.rules]
        out.append("\t}")
    return "\n".join([*out, "}", ""])


def four(number: int) -> str:
    """An IPv4 address as text."""
    return str(ipaddress.IPv4Address(number))


def six(number: int) -> str:
    """An IPv6 address as text, in hexadecimal throughout: how Python writes a mapped address depends on its version."""
    return (
        str(ipaddress.IPv6Address(number))
        if number >> 32 != 0xFFFF
        else f"::ffff:{number >> 16 & 0xFFFF:x}:{number & 0xFFFF:x}"
    )


def _elements(each: table.Set) -> list[str]:
    if each.type == "ifname":
        return [f'"{word}"' for word in each.words]
    if each.type == "mark":
        return [f"0x{first:08x} : {chain}" for first, _, chain in each.elements]
    show = four if each.type == "ipv4_addr" else six
    shown = []
    for first, last, chain in each.elements:
        text = show(first) if first == last else f"{show(first)}-{show(last)}"
        shown.append(f"{text} : jump {chain}" if each.vmap else text)
    return shown


def _rule_text(rule: table.Rule) -> str:
    text = " ".join(map(_expression_text, rule.expressions))
    return f'{text} comment "{rule.comment}"' if rule.comment else text


def _expression_text(expression: table.Expression) -> str:
    match expression:
        case table.Meta("iifname" | "oifname" as key, value):
            return f"{key} {value}"
        case table.Meta(key, value):
            return f"meta {key} {value}"
        case table.Address(_, side, set_, vmap, inside, prefix) if inside:
            masked = f" & 0x{table.mask_of(4, prefix).hex()}" if prefix else ""
            return f"@nh,{8 * (table.OFFSETS[6, side] + inside)},32{masked} {'vmap ' if vmap else ''}@{set_}"
        case table.Address(family, side, set_, vmap, _, prefix):
            masked = f" & {ipaddress.ip_address(table.mask_of(family, prefix))}" if prefix else ""
            return f"{'ip' if family == 4 else 'ip6'} {side}{masked} {'vmap ' if vmap else ''}@{set_}"
        case table.Port(proto, port, side):
            return f"{proto} {side} {port}"
        case table.Owner(uid):
            return f"meta skuid {uid}"
        case table.Begins(octets):
            return " ".join(
                f"@ih,{8 * at},{8 * len(part)} " + (f"& 0x{mask.hex()} == " if mask else "") + f"0x{part.hex()}"
                for at, part, mask in table.pattern(octets)
            )
        case table.Judged(mask, set_):
            return f"ct mark & 0x{mask:08x} vmap @{set_}"
        case table.Mark(mask, value):
            return f"ct mark set ct mark & 0x{~mask & 0xFFFFFFFF:08x} | 0x{value:08x}"
        case table.Counter(name):
            return f'counter name "{name}"'
        case table.Log(prefix, group):
            return (
                f"limit rate {LOG_RATE}/second burst {LOG_RATE} packets "
                f'log prefix "{prefix}" group {group} snaplen {SNAPLEN} queue-threshold 32'
            )
        case table.Reject(kind):
            return {
                "reset": "reject with tcp reset",
                "admin": "reject with icmpx admin-prohibited",
                "port": "reject with icmpx port-unreachable",
            }[kind]
        case table.Refusal(proto):
            return "tcp flags rst" if proto == "tcp" else f"{proto} type destination-unreachable"
        case table.Redirect(port):
            return f"redirect to :{port}"
        case table.Jump(chain):
            return f"jump {chain}"
        case table.Return():
            return "return"
        case table.Accept():
            return "accept"
