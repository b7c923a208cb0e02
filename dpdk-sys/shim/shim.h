/*
 * What DPDK gives only as inline functions, and fields of structures whose layout differs between releases, as plain
 * functions. Calls on the packet path are one per burst, not one per packet.
 *
 * Compiles against 22.11 and newer. Results: 0 or a count, else a negative errno.
 */
#ifndef SLUICE_SHIM_H
#define SLUICE_SHIM_H

#include <rte_config.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

/* Most frames of one call. */
#define SHIM_BURST 64

/*
 * Where an mbuf has what its owner reads and edits: all of it in its first cache line, which the device has just written.
 * Sizes in bytes behind each.
 */
enum {
	SHIM_AT_BUFFER = offsetof(struct rte_mbuf, buf_addr),     /* pointer: the buffer's first byte */
	SHIM_AT_HEADROOM = offsetof(struct rte_mbuf, data_off),   /* 2: where the data begins in it */
	SHIM_AT_SEGMENTS = offsetof(struct rte_mbuf, nb_segs),    /* 2 */
	SHIM_AT_FLAGS = offsetof(struct rte_mbuf, ol_flags),      /* 8: SHIM_OL_* and others */
	SHIM_AT_PACKET_LEN = offsetof(struct rte_mbuf, pkt_len),  /* 4: bytes of all segments */
	SHIM_AT_LEN = offsetof(struct rte_mbuf, data_len),        /* 2: bytes of this segment */
	SHIM_AT_RSS = offsetof(struct rte_mbuf, hash),            /* 4: the NIC's hash, with SHIM_OL_RSS */
	SHIM_AT_SIZE = offsetof(struct rte_mbuf, buf_len),        /* 2: bytes of the buffer */
};

/* What a NIC says of a received frame. */
enum {
	SHIM_OL_RSS = RTE_MBUF_F_RX_RSS_HASH,
	SHIM_OL_CSUM_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD,
	SHIM_OL_CSUM_BAD = RTE_MBUF_F_RX_L4_CKSUM_BAD,
	SHIM_OL_CSUM = RTE_MBUF_F_RX_L4_CKSUM_MASK,
};

/* rte_errno of the calling thread: a macro over a thread-local. */
int shim_errno(void);

/* DPDK's name and version. */
const char *shim_version(void);

/* Puts the calling thread on one CPU. */
int shim_pin(unsigned int cpu);

/* Whether the kernel interface of this index is in the caller's network namespace. */
bool shim_netdev_here(unsigned int index);

/* Receives at most `n` <= SHIM_BURST frames into `out` and prefetches the first cache line of each. */
uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **out, uint16_t n);

/*
 * Sends from the front of `in` and returns how many the device took and now owns. Tries at most `tries` times without
 * progress. Stops before a chained frame: ports are not asked for multi-segment transmission.
 */
uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf *const *in, uint16_t n, unsigned int tries);

/* Fills `out` with `n` <= SHIM_BURST empty frames, or none: -ENOENT where the pool has too few. */
int shim_alloc(struct rte_mempool *pool, struct rte_mbuf **out, uint16_t n);

/* Frees `n` frames, segments included. */
void shim_free(struct rte_mbuf *const *frames, uint16_t n);

/*
 * Makes a chained frame one segment, in place where its first segment has the room, else by a copy into a new mbuf of
 * `pool`. On failure (-EMSGSIZE, -ENOENT) the frame is unchanged.
 */
int shim_linearise(struct rte_mempool *pool, struct rte_mbuf **frame);

/* What a port is and can. */
struct shim_port {
	char driver[32];
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint16_t max_mtu;
	uint16_t reta_size;  /* 0: no redirection table */
	bool hashes_ports;   /* RSS covers addresses and ports of TCP and UDP over IPv4 and IPv6 */
	bool verifies;       /* it can verify checksums of received TCP and UDP */
	uint32_t netdev;     /* index of the kernel interface behind the port; 0 for none */
};

int shim_port_info(uint16_t port, struct shim_port *out);

/*
 * Configures queues, MTU (clamped to what the device takes) and receive checksums; with `rss` also our key and every
 * hash function of IP, TCP and UDP that the device has.
 */
int shim_port_configure(uint16_t port, uint16_t rx_queues, uint16_t tx_queues, uint16_t mtu, bool rss);

/* Sets all queues up; descriptor counts are adjusted to what the device takes. */
int shim_port_queues(uint16_t port, uint16_t rx_queues, uint16_t tx_queues, uint16_t rx_desc, uint16_t tx_desc,
		     struct rte_mempool *pool);

/* Points entry i of the redirection table to queue (i % 128) % queues. */
int shim_port_reta(uint16_t port, uint16_t queues);

int shim_port_mac(uint16_t port, uint8_t mac[6]);
int shim_port_set_mac(uint16_t port, const uint8_t mac[6]);

/* Carrier and Mbit/s (0: unknown), without waiting. */
int shim_port_link(uint16_t port, bool *up, uint32_t *mbps);

/* Takes the whole device away, for ports that will not stop by themselves. */
int shim_port_remove(uint16_t port);

#endif
