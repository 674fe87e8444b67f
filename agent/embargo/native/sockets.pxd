"""What `intake` needs of the C library: batches of datagrams, epoll and clocks."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef extern from "<sys/epoll.h>":
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLLERR, EPOLLHUP
    int epoll_wait(int, epoll_event *, int, int) nogil

cdef extern from "<time.h>":
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC, CLOCK_REALTIME
    int clock_gettime(int, timespec *) nogil
    int nanosleep(const timespec *, timespec *) nogil

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <sys/socket.h>
    """
    ctypedef unsigned int socklen_t
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        uint32_t sin_addr "sin_addr.s_addr"
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        uint8_t sin6_addr "sin6_addr.s6_addr"[16]
        uint32_t sin6_scope_id
    struct sockaddr_storage:
        unsigned short ss_family
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct in_pktinfo:
        int ipi_ifindex
        uint32_t ipi_spec_dst "ipi_spec_dst.s_addr"
        uint32_t ipi_addr "ipi_addr.s_addr"
    int AF_INET, AF_INET6, MSG_DONTWAIT, MSG_NOSIGNAL, IPPROTO_IP, IP_PKTINFO
    ssize_t recv(int, void *, size_t, int) nogil
    ssize_t send(int, const void *, size_t, int) nogil
    int recvmmsg(int, mmsghdr *, unsigned int, int, timespec *) nogil
    int sendmmsg(int, mmsghdr *, unsigned int, int) nogil
    const char *inet_ntop(int, const void *, char *, socklen_t)
    cmsghdr *CMSG_FIRSTHDR(msghdr *)
    cmsghdr *CMSG_NXTHDR(msghdr *, cmsghdr *)
    unsigned char *CMSG_DATA(cmsghdr *)
    uint16_t ntohs(uint16_t)
    uint32_t ntohl(uint32_t)


cdef inline double clock(int which) noexcept nogil:
    """Seconds of a clock of clock_gettime(2)."""
    cdef timespec now
    clock_gettime(which, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef inline void answer_from(msghdr *header) noexcept:  # it writes into one message: nothing to raise
    """Make the control message that tells where a query was sent to the one that says where the reply leaves from."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(header)
    cdef in_pktinfo *info
    while control != NULL:
        if control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
            info = <in_pktinfo *>CMSG_DATA(control)
            info.ipi_ifindex = 0
            info.ipi_addr = 0
        control = CMSG_NXTHDR(header, control)


cdef inline tuple sender_of(sockaddr_storage *peer, str client, msghdr *header, bint wildcard):
    """The address that Python sends a reply to: see `intake.Listener`."""
    cdef sockaddr_in6 *six = <sockaddr_in6 *>peer
    cdef cmsghdr *control
    if peer.ss_family == AF_INET:
        address = (client, ntohs((<sockaddr_in *>peer).sin_port))
    else:
        address = (client, ntohs(six.sin6_port), ntohl(six.sin6_flowinfo), six.sin6_scope_id)
    if not wildcard:
        return address
    ancillary = []
    answer_from(header)
    control = CMSG_FIRSTHDR(header)
    while control != NULL:
        data = (<const char *>CMSG_DATA(control))[: control.cmsg_len - (CMSG_DATA(control) - <unsigned char *>control)]
        ancillary.append((control.cmsg_level, control.cmsg_type, data))
        control = CMSG_NXTHDR(header, control)
    return client, address, ancillary
