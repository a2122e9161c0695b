"""A model inside an application of one's own, for threads and for asyncio: uvicorn service:app --app-dir examples"""

import asyncio
from typing import Annotated

from fastapi import FastAPI, File, HTTPException

import gitfast

app = FastAPI()
model = gitfast.load("git-tiny", prefix_cache_bytes=100_000_000)


@app.post("/caption")
def caption(image: Annotated[bytes, File()]) -> str:  # a plain function: FastAPI calls it in a thread
    try:
        return model.caption(image).text
    except gitfast.ImageError as error:
        raise HTTPException(400, str(error)) from None


@app.post("/ask")
async def ask(image: Annotated[bytes, File()], question: str) -> dict[str, str]:
    calls = [asyncio.to_thread(model.caption, image), asyncio.to_thread(model.answer, image, question)]
    description, answer = await asyncio.gather(*calls)  # two calls at the same time share the model's work
    return {"caption": description.text, "answer": answer.text}
