#define _GNU_SOURCE
#include "shim.h"

#include <rte_version.h>

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>

#include <rte_bitops.h>
#include <rte_ether.h>
#include <rte_prefetch.h>
#include <rte_thread.h>

/* Both directions of a flow hash alike under a key of 16-bit period (Woo and Park, "Scalable TCP session monitoring
 * with symmetric receive-side scaling", 2012). 40 bytes are Toeplitz for IPv6; some NICs want 52. */
#define KEY_MAX 64
#define RETA_MAX 2048

#define RSS_WANTED (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP)
#define RSS_PORTS                                                                                                      \
	(RTE_ETH_RSS_NONFRAG_IPV4_TCP | RTE_ETH_RSS_NONFRAG_IPV4_UDP | RTE_ETH_RSS_NONFRAG_IPV6_TCP |                 \
	 RTE_ETH_RSS_NONFRAG_IPV6_UDP)

/* Asked for where the device has them; what it leaves open, software verifies. */
#define RX_L4 (RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM)
#define RX_CHECKSUMS (RTE_ETH_RX_OFFLOAD_IPV4_CKSUM | RTE_ETH_RX_OFFLOAD_SCTP_CKSUM | RX_L4)

/* The sizes that shim.h gives. */
#define SIZE_IS(field, size) _Static_assert(sizeof(((struct rte_mbuf *)0)->field) == (size), #field)
SIZE_IS(buf_addr, sizeof(void *));
SIZE_IS(data_off, 2);
SIZE_IS(nb_segs, 2);
SIZE_IS(ol_flags, 8);
SIZE_IS(pkt_len, 4);
SIZE_IS(data_len, 2);
SIZE_IS(hash.rss, 4);
SIZE_IS(buf_len, 2);

const char *shim_version(void)
{
	return rte_version();
}

int shim_errno(void)
{
	return rte_errno;
}

int shim_pin(unsigned int cpu)
{
	rte_cpuset_t set;

	if (cpu >= CPU_SETSIZE)
		return -EINVAL;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return -abs(rte_thread_set_affinity(&set));
}

bool shim_netdev_here(unsigned int index)
{
	char name[IF_NAMESIZE];

	return if_indextoname(index, name) != NULL;
}

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **out, uint16_t n)
{
	const uint16_t got = rte_eth_rx_burst(port, queue, out, RTE_MIN(n, SHIM_BURST));

	for (uint16_t i = 0; i < got; i++)
		rte_prefetch0(rte_pktmbuf_mtod(out[i], void *));
	return got;
}

uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf *const *in, uint16_t n, unsigned int tries)
{
	struct rte_mbuf *m[SHIM_BURST];
	uint16_t ready = 0, sent = 0;

	n = RTE_MIN(n, SHIM_BURST);
	while (ready < n && in[ready]->nb_segs == 1) {
		m[ready] = in[ready];
		/* Nothing is asked of the device; where the data lives is not a request and stays. */
		m[ready]->ol_flags &= RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL;
		ready++;
	}
	while (sent < ready) {
		const uint16_t took = rte_eth_tx_burst(port, queue, m + sent, ready - sent);

		sent += took;
		if (took == 0) {
			if (tries-- == 0)
				break;
			rte_pause();
		}
	}
	return sent;
}

int shim_alloc(struct rte_mempool *pool, struct rte_mbuf **out, uint16_t n)
{
	if (n > SHIM_BURST)
		return -EINVAL;
	return rte_pktmbuf_alloc_bulk(pool, out, n) == 0 ? 0 : -ENOENT;
}

void shim_free(struct rte_mbuf *const *frames, uint16_t n)
{
	for (uint16_t i = 0; i < n; i++)
		rte_pktmbuf_free(frames[i]);
}

int shim_linearise(struct rte_mempool *pool, struct rte_mbuf **frame)
{
	struct rte_mbuf *m = *frame, *whole;
	char *to;

	if (rte_pktmbuf_linearize(m) == 0)
		return 0;
	if (m->pkt_len > UINT16_MAX)
		return -EMSGSIZE;
	whole = rte_pktmbuf_alloc(pool);
	if (whole == NULL)
		return -ENOENT;
	to = rte_pktmbuf_append(whole, m->pkt_len);
	if (to == NULL) {
		rte_pktmbuf_free(whole);
		return -EMSGSIZE;
	}
	for (const struct rte_mbuf *s = m; s != NULL; s = s->next) {
		memcpy(to, rte_pktmbuf_mtod(s, const void *), s->data_len);
		to += s->data_len;
	}
	/* What the NIC has said of it stays true. */
	whole->ol_flags |= m->ol_flags & (RTE_MBUF_F_RX_RSS_HASH | RTE_MBUF_F_RX_L4_CKSUM_MASK);
	whole->hash.rss = m->hash.rss;
	rte_pktmbuf_free(m);
	*frame = whole;
	return 0;
}

/* A driver's ethdev description, defaults filled in. */
static int info_of(uint16_t port, struct rte_eth_dev_info *info)
{
	memset(info, 0, sizeof(*info));
	return rte_eth_dev_info_get(port, info);
}

int shim_port_info(uint16_t port, struct shim_port *out)
{
	struct rte_eth_dev_info info;
	const int ret = info_of(port, &info);

	if (ret != 0)
		return ret;
	memset(out, 0, sizeof(*out));
	if (info.driver_name != NULL)
		strncpy(out->driver, info.driver_name, sizeof(out->driver) - 1);
	out->max_rx_queues = info.max_rx_queues;
	out->max_tx_queues = info.max_tx_queues;
	out->max_mtu = info.max_mtu;
	out->reta_size = info.reta_size;
	out->hashes_ports = (info.flow_type_rss_offloads & RSS_PORTS) == RSS_PORTS;
	out->verifies = (info.rx_offload_capa & RX_L4) == RX_L4;
	out->netdev = info.if_index;
	return 0;
}

int shim_port_configure(uint16_t port, uint16_t rx_queues, uint16_t tx_queues, uint16_t mtu, bool rss)
{
	struct rte_eth_dev_info info;
	struct rte_eth_conf conf;
	uint8_t key[KEY_MAX];
	const int ret = info_of(port, &info);

	if (ret != 0)
		return ret;
	memset(&conf, 0, sizeof(conf));
	conf.rxmode.mtu = RTE_MIN(mtu, info.max_mtu);
	conf.rxmode.offloads = info.rx_offload_capa & RX_CHECKSUMS;
	/* One pool, no references, no chains: what "fast free" asks for. */
	conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
	if (rss) {
		if (info.hash_key_size > KEY_MAX)
			return -ENOTSUP;
		for (unsigned int i = 0; i < KEY_MAX; i += 2) {
			key[i] = 0x6d;
			key[i + 1] = 0x5a;
		}
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rxmode.offloads |= info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_RSS_HASH;
		conf.rx_adv_conf.rss_conf.rss_key = key;
		conf.rx_adv_conf.rss_conf.rss_key_len = info.hash_key_size ? info.hash_key_size : 40;
		conf.rx_adv_conf.rss_conf.rss_hf = info.flow_type_rss_offloads & RSS_WANTED;
	}
	return rte_eth_dev_configure(port, rx_queues, tx_queues, &conf);
}

int shim_port_queues(uint16_t port, uint16_t rx_queues, uint16_t tx_queues, uint16_t rx_desc, uint16_t tx_desc,
		     struct rte_mempool *pool)
{
	const int node = rte_eth_dev_socket_id(port);
	int ret = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx_desc, &tx_desc);

	for (uint16_t q = 0; ret == 0 && q < rx_queues; q++)
		ret = rte_eth_rx_queue_setup(port, q, rx_desc, (unsigned int)node, NULL, pool);
	for (uint16_t q = 0; ret == 0 && q < tx_queues; q++)
		ret = rte_eth_tx_queue_setup(port, q, tx_desc, (unsigned int)node, NULL);
	return ret;
}

int shim_port_reta(uint16_t port, uint16_t queues)
{
	struct rte_eth_rss_reta_entry64 reta[RETA_MAX / RTE_ETH_RETA_GROUP_SIZE];
	struct rte_eth_dev_info info;
	const int ret = info_of(port, &info);

	if (ret != 0)
		return ret;
	if (queues == 0 || info.reta_size == 0 || info.reta_size > RETA_MAX)
		return -ENOTSUP;
	memset(reta, 0, sizeof(reta));
	for (uint16_t i = 0; i < info.reta_size; i++) {
		struct rte_eth_rss_reta_entry64 *group = &reta[i / RTE_ETH_RETA_GROUP_SIZE];

		group->mask |= UINT64_C(1) << (i % RTE_ETH_RETA_GROUP_SIZE);
		group->reta[i % RTE_ETH_RETA_GROUP_SIZE] = (i % 128) % queues;
	}
	return rte_eth_dev_rss_reta_update(port, reta, info.reta_size);
}

int shim_port_mac(uint16_t port, uint8_t mac[6])
{
	struct rte_ether_addr addr;
	const int ret = rte_eth_macaddr_get(port, &addr);

	if (ret == 0)
		memcpy(mac, addr.addr_bytes, 6);
	return ret;
}

int shim_port_set_mac(uint16_t port, const uint8_t mac[6])
{
	struct rte_ether_addr addr;

	memcpy(addr.addr_bytes, mac, 6);
	return rte_eth_dev_default_mac_addr_set(port, &addr);
}

int shim_port_link(uint16_t port, bool *up, uint32_t *mbps)
{
	struct rte_eth_link link;
	int ret;

	memset(&link, 0, sizeof(link));
	ret = rte_eth_link_get_nowait(port, &link);
	if (ret == 0) {
		*up = link.link_status == RTE_ETH_LINK_UP;
		*mbps = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
	}
	return ret;
}

int shim_port_remove(uint16_t port)
{
	struct rte_eth_dev_info info;
	const int ret = info_of(port, &info);

	if (ret != 0)
		return ret;
	return info.device == NULL ? -ENODEV : rte_dev_remove(info.device);
}
