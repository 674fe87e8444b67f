"""Embargo beside other filtering resolvers: the same names, the same queries, the same upstream, one run.

    __main__   command line; makes the network and process namespace in which everything happens and ends
    data       names and queries, from a seed
    servers/   one file a server: its list format, configuration and command
    measure    dnsperf, and what it cost the server in processor time and memory
    rounds     what is measured, when, and on which server
    fairness   what another client notices while one client floods the server (floods), with an upstream that is scripted
    report     medians and ratios: as a table, JSON, Markdown and a plot

The servers have one processor and run one at a time, in turn and several times, so that the machine's moods meet all of them;
load generator and upstream share another processor. A figure alone says little about another machine: what counts is the ratio.
"""
