"""An echo server and its client on asyncio: asyncio_echo.py server|client plain|tls ADDRESS PORT.

With tls, both change to TLS on the running connection, after a line in the clear.
"""

import asyncio
import hashlib
import random
import ssl
import sys

ROLE, KIND, ADDRESS, PORT = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
CLIENTS, SIZE = 20, 500_000


async def to_tls(writer, server):
    if server:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain("certificate.pem", "key.pem")
    else:
        context = ssl.create_default_context(cafile="certificate.pem")
        context.check_hostname = False
    await writer.start_tls(context)


async def converse(reader, writer):
    if KIND == "tls":
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"GO\n")
        await writer.drain()
        await to_tls(writer, True)
    while block := await reader.read(65_536):
        writer.write(block)
        await writer.drain()
    writer.close()


async def serve():
    server = await asyncio.start_server(converse, ADDRESS, PORT)
    async with server:
        await server.serve_forever()


async def ask(number):
    reader, writer = await asyncio.open_connection(ADDRESS, PORT)
    if KIND == "tls":
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"GO\n"
        await to_tls(writer, False)
    content = random.Random(number).randbytes(SIZE)

    async def send():
        for at in range(0, SIZE, 30_000):
            writer.write(content[at:at + 30_000])
            await writer.drain()

    sender = asyncio.ensure_future(send())
    got = await reader.readexactly(SIZE)
    await sender
    writer.close()
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()


async def main():
    if ROLE == "server":
        await serve()
    await asyncio.wait_for(asyncio.gather(*(ask(number) for number in range(CLIENTS))), 100)
    print(f"{CLIENTS} streams of {SIZE} bytes there and back, all the same")


asyncio.run(main())
